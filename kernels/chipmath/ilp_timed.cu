// The chains of ilp.cu with a clock around them: CHAINS independent chains in every warp, timed in the SM's own cycles.
//
//   KIND     FFMA        one fma.rn.f32 a thread
//            MMA_BF16    mma.sync.m16n8k16 of a warp, bfloat16 operands, float32 accumulators
//            WGMMA_E4M3  wgmma.m64n64k32 of a warpgroup, E4M3 operands in shared memory. It is asynchronous, so a chain
//                        waits for its own last product before it goes on, as the hardware makes the others do: as many
//                        are under way as there are chains. Waiting for all together would empty the pipe in every step
//   CHAINS   1, 2, …
//   DEPTH    instructions of each chain in a step: deep enough that the loop's own instructions hardly count
//   THREADS  per block, exactly
//
// words      the registers of A of every chain, then those of B, 32 lanes each; WGMMA_E4M3: tile A, then tile B. From
//            memory, or ptxas would find out which are equal and copy them together in every step
// sums[t]    of thread t's accumulators, which are whole numbers below 2**24
// starts[b]  the SM's clock when all of block b begin, stops[b] when all have ended, units[b] which SM
//
// Launch (blocks, THREADS) with as many blocks as fit at once; dynamic shared memory throttles occupancy.
#define FFMA 0
#define MMA_BF16 1
#define WGMMA_E4M3 2

__device__ __forceinline__ int lane_word(const int* words, int number) { return words[number * 32 + threadIdx.x % 32]; }

__device__ __forceinline__ long long now() {
  long long cycles;
  asm volatile("mov.u64 %0, %%clock64;" : "=l"(cycles));
  return cycles;
}

#if KIND == FFMA
#define REGISTERS 1
struct operands {
  float a[CHAINS], one;
};

__device__ __forceinline__ void prepare(operands& x, const int* words) {
#pragma unroll
  for (int i = 0; i < CHAINS; ++i) x.a[i] = __int_as_float(lane_word(words, i));
  x.one = __int_as_float(lane_word(words, CHAINS));
}

__device__ __forceinline__ void step(const operands& x, float (&c)[CHAINS][REGISTERS]) {
#pragma unroll
  for (int d = 0; d < DEPTH; ++d)
#pragma unroll
    for (int i = 0; i < CHAINS; ++i) asm volatile("fma.rn.f32 %0, %0, %1, %2;" : "+f"(c[i][0]) : "f"(x.one), "f"(x.a[i]));
}

#elif KIND == MMA_BF16
#define REGISTERS 4
struct operands {
  unsigned a[CHAINS][4], b[2];
};

__device__ __forceinline__ void prepare(operands& x, const int* words) {
#pragma unroll
  for (int i = 0; i < CHAINS; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) x.a[i][j] = lane_word(words, 4 * i + j);
#pragma unroll
  for (int j = 0; j < 2; ++j) x.b[j] = lane_word(words, 4 * CHAINS + j);
}

__device__ __forceinline__ void step(const operands& x, float (&c)[CHAINS][REGISTERS]) {
#pragma unroll
  for (int d = 0; d < DEPTH; ++d)
#pragma unroll
    for (int i = 0; i < CHAINS; ++i)
      asm volatile(
          "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
          "{%0, %1, %2, %3};"
          : "+f"(c[i][0]), "+f"(c[i][1]), "+f"(c[i][2]), "+f"(c[i][3])
          : "r"(x.a[i][0]), "r"(x.a[i][1]), "r"(x.a[i][2]), "r"(x.a[i][3]), "r"(x.b[0]), "r"(x.b[1]));
}

#elif KIND == WGMMA_E4M3
#define REGISTERS 32
#define TILE_WORDS (64 * 32 / 4)
struct operands {
  unsigned long long a, b;  // descriptors
};

// Shared-memory descriptor (PTX ISA, "Matrix Descriptor Format"), no swizzle: core matrices are 8 rows of 16 bytes; the
// two of a row block follow each other, 128 bytes apart, and row blocks are 256 bytes apart.
__device__ __forceinline__ unsigned long long describe(const void* tile) {
  const unsigned long long address = (unsigned)__cvta_generic_to_shared(tile);
  return (address & 0x3FFFF) >> 4 | 128ull >> 4 << 16 | 256ull >> 4 << 32;
}

__device__ __forceinline__ void prepare(operands& x, const int* words) {
  __shared__ __align__(128) int a[TILE_WORDS], b[TILE_WORDS];
  for (int i = threadIdx.x; i < TILE_WORDS; i += THREADS) {
    a[i] = words[i];
    b[i] = words[TILE_WORDS + i];
  }
  asm volatile("fence.proxy.async.shared::cta;");  // the tensor cores read what threads wrote
  __syncthreads();
  x.a = describe(a);
  x.b = describe(b);
}

__device__ __forceinline__ void step(const operands& x, float (&c)[CHAINS][REGISTERS]) {
#define EIGHT(i, j)                                                                                             \
  "+f"(c[i][j]), "+f"(c[i][j + 1]), "+f"(c[i][j + 2]), "+f"(c[i][j + 3]), "+f"(c[i][j + 4]), "+f"(c[i][j + 5]), \
      "+f"(c[i][j + 6]), "+f"(c[i][j + 7])
  asm volatile("wgmma.fence.sync.aligned;");
#pragma unroll
  for (int d = 0; d < DEPTH; ++d)
#pragma unroll
    for (int i = 0; i < CHAINS; ++i) {
      asm volatile(
          "wgmma.mma_async.sync.aligned.m64n64k32.f32.e4m3.e4m3 "
          "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
          "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, %32, %33, 1, 1, 1;"
          : EIGHT(i, 0), EIGHT(i, 8), EIGHT(i, 16), EIGHT(i, 24)
          : "l"(x.a), "l"(x.b));
      asm volatile("wgmma.commit_group.sync.aligned;");
      asm volatile("wgmma.wait_group.sync.aligned %0;" : : "n"(CHAINS - 1));  // the next chain's last one has ended
    }
  asm volatile("wgmma.wait_group.sync.aligned 0;");
}
#endif

extern "C" __global__ void __launch_bounds__(THREADS)
    chains(long long* sums, long long* starts, long long* stops, int* units, const int* words, int steps) {
  operands x;
  float c[CHAINS][REGISTERS] = {};
  prepare(x, words);
  __syncthreads();
  const long long start = now();
#pragma unroll 1
  for (int i = 0; i < steps; ++i) step(x, c);
  __syncthreads();
  const long long stop = now();
  long long sum = 0;
#pragma unroll
  for (int i = 0; i < CHAINS; ++i)
#pragma unroll
    for (int j = 0; j < REGISTERS; ++j) sum += (int)c[i][j];
  sums[blockIdx.x * THREADS + threadIdx.x] = sum;
  if (threadIdx.x == 0) {
    starts[blockIdx.x] = start;
    stops[blockIdx.x] = stop;
    asm volatile("mov.u32 %0, %%smid;" : "=r"(units[blockIdx.x]));
  }
}
