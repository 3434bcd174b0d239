import os, time, tempfile, numpy as np, torch, cProfile, pstats
from pathlib import Path
from safetensors.torch import save_file
from exporter.models import MODELS
from exporter.networks.tiny.spec import TINY_DECODERS, tiny_weights
from exporter.torch_backend.runner import TorchRunner
from tests.support.media_bundle import bare_manifest, random_tensors, smooth_latents
from tests.support.media_parts import tiny_on
W=random_tensors(tiny_weights(TINY_DECODERS["taew2_1"]),3); tmp=Path(tempfile.mkdtemp()); save_file(W,tmp/"t.safetensors")
m=bare_manifest(MODELS["wan2.1-1.3b-480p"]); r=TorchRunner(m,torch.device("cuda")); v=tiny_on(r,m,tmp/"t.safetensors"); z=smooth_latents((21,60,104))
for _ in range(3): list(v.decode(z))
ts=[]
for _ in range(5):
    torch.cuda.synchronize(); t=time.perf_counter(); list(v.decode(z)); ts.append(round(time.perf_counter()-t,4))
print("480p, weights resident", ts)
p=cProfile.Profile(); p.enable(); list(v.decode(z)); p.disable()
pstats.Stats(p).sort_stats("tottime").print_stats(28)
