// The few names of HIP that a kernel needs to compile where no ROCm is installed; crosscompile.py includes it first.
// On a machine with ROCm, hipcc and hipRTC bring the real ones and this file is not used.
#pragma once

#define __global__ __attribute__((global))
#define __device__ __attribute__((device))
#define __host__ __attribute__((host))
#define __shared__ __attribute__((shared))
#define __constant__ __attribute__((constant))
#define __forceinline__ inline __attribute__((always_inline))
// As in HIP, the optional second argument is the least number of waves on each SIMD.
#define __launch_bounds__(...) CHIPMATH_BOUNDS(__VA_ARGS__, CHIPMATH_BOUNDS_2, CHIPMATH_BOUNDS_1)(__VA_ARGS__)
#define CHIPMATH_BOUNDS(first, second, chosen, ...) chosen
#define CHIPMATH_BOUNDS_1(threads) __attribute__((amdgpu_flat_work_group_size(1, threads)))
#define CHIPMATH_BOUNDS_2(threads, waves) CHIPMATH_BOUNDS_1(threads) __attribute__((amdgpu_waves_per_eu(waves)))

// threadIdx.x and the like read a hardware register each time: properties, not data.
#define CHIPMATH_INDEX(name, read)                                                                  \
  struct chipmath_##name {                                                                          \
    __declspec(property(get = get_x)) unsigned x;                                                   \
    __declspec(property(get = get_y)) unsigned y;                                                   \
    __declspec(property(get = get_z)) unsigned z;                                                   \
    static __device__ __forceinline__ unsigned get_x() { return read##_x(); }                       \
    static __device__ __forceinline__ unsigned get_y() { return read##_y(); }                       \
    static __device__ __forceinline__ unsigned get_z() { return read##_z(); }                       \
  };                                                                                                \
  extern const __device__ __attribute__((weak)) chipmath_##name name

CHIPMATH_INDEX(threadIdx, __builtin_amdgcn_workitem_id);
CHIPMATH_INDEX(blockIdx, __builtin_amdgcn_workgroup_id);
CHIPMATH_INDEX(blockDim, __builtin_amdgcn_workgroup_size);

static __device__ __forceinline__ void __syncthreads() {
  __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
  __builtin_amdgcn_s_barrier();
  __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
}
