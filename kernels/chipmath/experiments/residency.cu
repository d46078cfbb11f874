// How many blocks does an SM hold at once? Every block announces itself on its SM, stays a while, and leaves.
//
//   THREADS  per block, exactly
//   LIVE     values that every thread keeps in registers while it stays
//
// present[s]  blocks on SM s now; starts at 0
// most[s]     the most at any time; starts at 0
// visits[s]   blocks that came; starts at 0
// seeds       LIVE values; sums[i] = their sum, by every thread of the launch: the registers were real
// stay        nanoseconds
//
// A block counts itself out before it ends, so that its successor never overlaps it in the count: `most` cannot be too
// large. It is not too small if all that fit arrive while the first still stays.
__device__ __forceinline__ unsigned unit() {
  unsigned sm;
  asm volatile("mov.u32 %0, %%smid;" : "=r"(sm));
  return sm;
}

__device__ __forceinline__ unsigned long long now() {
  unsigned long long nanoseconds;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(nanoseconds));
  return nanoseconds;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    residency(int* present, int* most, int* visits, const int* seeds, int* sums, int stay) {
  int kept[LIVE];
#pragma unroll
  for (int i = 0; i < LIVE; ++i) {
    kept[i] = seeds[i];
    asm volatile("" : "+r"(kept[i]));  // from here on nobody but this register knows the value
  }
  if (threadIdx.x == 0) {
    const unsigned here = unit();
    atomicMax(&most[here], atomicAdd(&present[here], 1) + 1);
    atomicAdd(&visits[here], 1);
    const unsigned long long arrived = now();
    while (now() - arrived < stay) __nanosleep(200);
    atomicSub(&present[here], 1);
    __threadfence();  // counted out before the block can end
  }
  __syncthreads();
  int sum = 0;
#pragma unroll
  for (int i = 0; i < LIVE; ++i) {
    asm volatile("" : "+r"(kept[i]));
    sum += kept[i];
  }
  sums[blockIdx.x * THREADS + threadIdx.x] = sum;
}
