// CHAINS independent chains of f8f6f4 matrix instructions in every wave: instruction-level parallelism on CDNA4.
//
// Every chain has operands A and an accumulator C of its own; all share B. What a step issues grows with CHAINS, what a
// wave waits for does not.
//
//   CHAINS          1, 2, …
//   ROWS            16: v_mfma_f32_16x16x128_f8f6f4; 32: v_mfma_f32_32x32x64_f8f6f4. Both read E4M3.
//   SCALED          1: v_mfma_scale_…, scale bytes from the argument `scales`. 0: the unscaled instruction, which is
//                   also what clang makes of literal scales 0, 0 (not of run-time ones, nor of 0, 127).
//   THREADS         the most per group
//   WAVES_PER_SIMD  optional: ask the compiler for exactly so many
//
// out[t] = sum of thread t's accumulators. Launch (groups, THREADS); dynamic LDS throttles occupancy.
typedef int operand __attribute__((ext_vector_type(8)));
#if ROWS == 16
typedef float accumulator __attribute__((ext_vector_type(4)));
#define INSTRUCTION __builtin_amdgcn_mfma_scale_f32_16x16x128_f8f6f4
#else
typedef float accumulator __attribute__((ext_vector_type(16)));
#define INSTRUCTION __builtin_amdgcn_mfma_scale_f32_32x32x64_f8f6f4
#endif
#if SCALED
#define MULTIPLY(a, b, c) INSTRUCTION(a, b, c, 0, 0, 0, scales, 0, scales)
#else
#define MULTIPLY(a, b, c) INSTRUCTION(a, b, c, 0, 0, 0, 0, 0, 0)
#endif
#ifdef WAVES_PER_SIMD
#define ASKED __attribute__((amdgpu_waves_per_eu(WAVES_PER_SIMD, WAVES_PER_SIMD)))
#else
#define ASKED
#endif

extern "C" __global__ __launch_bounds__(THREADS) ASKED void chains(float* out, int steps, int scales) {
  operand a[CHAINS], b = (operand)(int)(threadIdx.x * 3);
  accumulator c[CHAINS];
#pragma unroll
  for (int i = 0; i < CHAINS; ++i) {
    a[i] = (operand)(int)(threadIdx.x ^ (i + 1));
    c[i] = (accumulator)(float)i;
  }
#pragma unroll 1
  for (int step = 0; step < steps; ++step)
#pragma unroll
    for (int i = 0; i < CHAINS; ++i) c[i] = MULTIPLY(a[i], b, c[i]);
  float sum = 0;
#pragma unroll
  for (int i = 0; i < CHAINS; ++i)
#pragma unroll
    for (int j = 0; j < sizeof(accumulator) / sizeof(float); ++j) sum += c[i][j];
  out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}
