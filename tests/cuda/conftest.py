"""Tests of the CUDA backend.

tests/cuda/simulated/   kernels in Numba's simulator, which needs no GPU and nothing but numba. NUMBA_ENABLE_CUDASIM must be set before
                        numba is imported, so test_cuda_simulator.py runs that folder in one process of its own. To run one by hand:
                            NUMBA_ENABLE_CUDASIM=1 pytest tests/cuda/simulated/test_simulated_linear.py
                        On a real GPU, test_gpu_kernels.py runs the same files there: LLMCLI_TEST_ON_GPU=1 pytest tests/cuda/simulated/...
tests/cuda/test_*.py    everything else, in this process. What compiles kernels to PTX needs `pip install 'llmcli[cuda]'` and no GPU;
                        what needs a GPU carries the marker `gpu`.
"""
