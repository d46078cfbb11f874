// How many workgroups does a CU hold at once? The twin of residency.cu, with the same arguments, for gfx942 and gfx950.
//
//   THREADS  per workgroup, exactly
//   LIVE     values that every thread keeps in registers while it stays
//
// stay        ticks of the constant 100 MHz clock
//
// Which CU: HW_ID (hardware register 4) has the CU in bits 11:8, its shader array in 12, its shader engine in 15:13;
// XCC_ID (20) has the die in 3:0. Triton's AMD backend reads the same fields. Together they are a number below 4096,
// with gaps: the caller checks that as many different ones were seen as there are CUs.
#define HARDWARE_REGISTER(id, offset, bits) __builtin_amdgcn_s_getreg((bits - 1) << 11 | offset << 6 | id)

static __device__ __forceinline__ unsigned unit() {
  return HARDWARE_REGISTER(20, 0, 4) << 8 | HARDWARE_REGISTER(4, 8, 8);
}

static __device__ __forceinline__ int add(int* counter, int value) {
  return __hip_atomic_fetch_add(counter, value, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT);
}

extern "C" __global__ __launch_bounds__(THREADS) void residency(
    int* present, int* most, int* visits, const int* seeds, int* sums, int stay) {
  int kept[LIVE];
#pragma unroll
  for (int i = 0; i < LIVE; ++i) {
    kept[i] = seeds[i];
    asm volatile("" : "+v"(kept[i]));  // from here on nobody but this register knows the value
  }
  if (threadIdx.x == 0) {
    const unsigned here = unit();
    __hip_atomic_fetch_max(&most[here], add(&present[here], 1) + 1, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT);
    add(&visits[here], 1);
    const unsigned long arrived = __builtin_amdgcn_s_memrealtime();
    while (__builtin_amdgcn_s_memrealtime() - arrived < stay) __builtin_amdgcn_s_sleep(8);
    add(&present[here], -1);
    __builtin_amdgcn_fence(__ATOMIC_RELEASE, "agent");  // counted out before the workgroup can end
  }
  __syncthreads();
  int sum = 0;
#pragma unroll
  for (int i = 0; i < LIVE; ++i) {
    asm volatile("" : "+v"(kept[i]));
    sum += kept[i];
  }
  sums[blockIdx.x * THREADS + threadIdx.x] = sum;
}
