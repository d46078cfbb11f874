// CHAINS independent chains of mma.sync.m16n8k16 (FP16 operands, FP32 accumulators) in every warp: the twin of ilp.hip.
//
// FP16, not FP8: on sm_90, sm_100 and sm_103 mma.sync with E4M3 operands is unpacked to FP16 first.
// Every chain has operands A and an accumulator C of its own; all share B.
//
//   CHAINS   1, 2, …
//   THREADS  the most per block
//
// out[t] = sum of thread t's accumulators. Launch (blocks, THREADS); dynamic shared memory throttles occupancy.
__device__ __forceinline__ void multiply(const unsigned (&a)[4], const unsigned (&b)[2], float (&c)[4]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

extern "C" __global__ void __launch_bounds__(THREADS) chains(float* out, int steps) {
  unsigned a[CHAINS][4], b[2] = {threadIdx.x * 3, threadIdx.x * 5};
  float c[CHAINS][4];
#pragma unroll
  for (int i = 0; i < CHAINS; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      a[i][j] = threadIdx.x ^ (4 * i + j + 1);
      asm volatile("" : "+r"(a[i][j]));  // else ptxas computes A anew in every step to save its register
      c[i][j] = i;
    }
#pragma unroll 1
  for (int step = 0; step < steps; ++step)
#pragma unroll
    for (int i = 0; i < CHAINS; ++i) multiply(a[i], b, c[i]);
  float sum = 0;
#pragma unroll
  for (int i = 0; i < CHAINS; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) sum += c[i][j];
  out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}
