int main_unused;
