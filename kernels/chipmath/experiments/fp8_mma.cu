// One mma.sync of a warp, so that its SASS tells which instruction does the work.
//
//   FP8  1: m16n8k32 with E4M3 operands; 0: m16n8k16 with FP16 operands. FP32 accumulators both.
#if FP8
#define MMA "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32"
#else
#define MMA "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"
#endif

extern "C" __global__ void __launch_bounds__(32) multiply(const unsigned* in, float* out) {
  const unsigned* mine = in + 6 * threadIdx.x;
  float c[4] = {};
  asm volatile(MMA " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(mine[0]), "r"(mine[1]), "r"(mine[2]), "r"(mine[3]), "r"(mine[4]), "r"(mine[5]));
  for (int i = 0; i < 4; ++i) out[4 * threadIdx.x + i] = c[i];
}
