// The chains of ilp.hip with a clock around them: the twin of ilp_timed.cu, with the same arguments, for gfx950.
//
//   SCALED   1: v_mfma_scale_f32_16x16x128_f8f6f4, scale bytes from the argument `scales` (0x7F7F7F7F is one)
//            0: v_mfma_f32_16x16x128_f8f6f4. Both read E4M3.
//   CHAINS   1, 2, …
//   DEPTH    instructions of each chain in a step
//   THREADS  per workgroup, exactly
//
// words: the registers of A of every chain, then those of B, 64 lanes each. Which CU: see residency.hip.
#define HARDWARE_REGISTER(id, offset, bits) __builtin_amdgcn_s_getreg((bits - 1) << 11 | offset << 6 | id)
typedef int operand __attribute__((ext_vector_type(8)));
typedef float accumulator __attribute__((ext_vector_type(4)));
#if SCALED
#define MULTIPLY(a, b, c) __builtin_amdgcn_mfma_scale_f32_16x16x128_f8f6f4(a, b, c, 0, 0, 0, scales, 0, scales)
#else
#define MULTIPLY(a, b, c) __builtin_amdgcn_mfma_scale_f32_16x16x128_f8f6f4(a, b, c, 0, 0, 0, 0, 0, 0)
#endif

extern "C" __global__ __launch_bounds__(THREADS) void chains(
    long* sums, long* starts, long* stops, int* units, const int* words, int steps, int scales) {
  operand a[CHAINS], b;
  accumulator c[CHAINS] = {};
#pragma unroll
  for (int j = 0; j < 8; ++j) {
#pragma unroll
    for (int i = 0; i < CHAINS; ++i) a[i][j] = words[(8 * i + j) * 64 + threadIdx.x % 64];
    b[j] = words[(8 * CHAINS + j) * 64 + threadIdx.x % 64];
  }
#pragma unroll
  for (int i = 0; i < CHAINS; ++i) asm volatile("" : "+v"(a[i]), "+v"(c[i]));  // there before the clock is read
  asm volatile("" : "+v"(b));
  __syncthreads();
  const long start = __builtin_readcyclecounter();
#pragma unroll 1
  for (int step = 0; step < steps; ++step)
#pragma unroll
    for (int d = 0; d < DEPTH; ++d)
#pragma unroll
      for (int i = 0; i < CHAINS; ++i) c[i] = MULTIPLY(a[i], b, c[i]);
  __syncthreads();
  const long stop = __builtin_readcyclecounter();
#pragma unroll
  for (int i = 0; i < CHAINS; ++i) asm volatile("" : "+v"(c[i]));  // else the sums below start before this clock
  long sum = 0;
#pragma unroll
  for (int i = 0; i < CHAINS; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) sum += (int)c[i][j];
  sums[blockIdx.x * THREADS + threadIdx.x] = sum;
  if (threadIdx.x == 0) {
    starts[blockIdx.x] = start;
    stops[blockIdx.x] = stop;
    units[blockIdx.x] = HARDWARE_REGISTER(20, 0, 4) << 8 | HARDWARE_REGISTER(4, 8, 8);
  }
}
