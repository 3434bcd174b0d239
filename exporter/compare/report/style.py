"""The report's style sheet: system fonts, no network, light and dark."""

from __future__ import annotations

CSS = """
:root { --ink:#0f172a; --soft:#475569; --line:#e2e8f0; --card:#ffffff; --page:#f1f5f9; --good:#047857; --bad:#b91c1c;
  --goodbg:#d1fae5; --badbg:#fee2e2; }
@media (prefers-color-scheme: dark) { :root { --ink:#e2e8f0; --soft:#94a3b8; --line:#334155; --card:#1e293b;
  --page:#0f172a; --good:#6ee7b7; --bad:#fca5a5; --goodbg:#064e3b; --badbg:#7f1d1d; } }
* { box-sizing:border-box; }
body { margin:0; background:var(--page); color:var(--ink); font:15px/1.5 system-ui, "Segoe UI", Roboto, sans-serif; }
main { max-width:1080px; margin:0 auto; padding:28px 20px 60px; }
h1 { font-size:24px; margin:0 0 2px; letter-spacing:-.01em; }
h2 { font-size:17px; margin:0 0 4px; }
p { margin:4px 0 10px; color:var(--soft); }
section { background:var(--card); border:1px solid var(--line); border-radius:10px;
  padding:18px 20px; margin-top:16px; }
.verdict { display:flex; gap:14px; align-items:center; flex-wrap:wrap; }
.badge { display:inline-block; border-radius:6px; padding:1px 9px; font-weight:600; font-size:13px;
  white-space:nowrap; }
.badge.good { background:var(--goodbg); color:var(--good); }
.badge.bad { background:var(--badbg); color:var(--bad); }
.big { font-size:17px; padding:5px 16px; }
.scroll { overflow-x:auto; }
table { border-collapse:collapse; width:100%; font-size:13.5px; font-variant-numeric:tabular-nums; }
th { text-align:left; color:var(--soft); font-weight:600; border-bottom:1px solid var(--line); padding:5px 14px 5px 0; }
td { border-bottom:1px solid var(--line); padding:5px 14px 5px 0; vertical-align:top; }
tr:last-child td { border-bottom:0; }
td.n, th.n { text-align:right; white-space:nowrap; }
td.key { color:var(--soft); white-space:nowrap; width:1%; }
figure { margin:10px 0 0; background:#fff; border-radius:8px; padding:8px; }
figure img { display:block; max-width:100%; height:auto; margin:0 auto; }
details summary { cursor:pointer; color:var(--soft); margin-top:8px; }
code { font:12.5px ui-monospace, Menlo, Consolas, monospace; }
ul { margin:6px 0 0; padding-left:20px; color:var(--soft); }
.two { display:grid; grid-template-columns:repeat(auto-fit, minmax(440px, 1fr)); gap:16px; }
.two section { margin-top:0; }
.two { margin-top:16px; }
"""
