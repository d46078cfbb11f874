// A stream through memory with so many 16-byte loads of every thread outstanding at once, for NVIDIA and AMD chips.
//
//   LOADS    that a thread issues before it uses the first
//   COPY     1: target = source; 0: read only, words[t] = exclusive or of all words that thread t read
//   THREADS  per group, exactly
//
// vectors  of 16 bytes, a multiple of THREADS * LOADS. Launch (groups, THREADS) with any number of groups; dynamic
// shared memory throttles occupancy.
//
// A thread uses what it loaded before it loads again, so that LOADS is also the most: a warp issues in order, and the
// first use waits. Left alone, compilers use the first before they issue the last: LLVM orders them so, and ptxas stays
// within the 32 registers that admit the most warps, unless the bounds say that one block is enough.
#ifdef __HIP__
typedef int vector __attribute__((ext_vector_type(4)));
#define ALL_LOADS_FIRST __builtin_amdgcn_sched_barrier(0)
#else
typedef int4 vector;
#define ALL_LOADS_FIRST
#endif

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    stream(const vector* __restrict__ source, vector* __restrict__ target, int* words, int vectors, int groups) {
  int parity = 0;
  const int stride = groups * THREADS * LOADS;
#pragma unroll 1
  for (int at = blockIdx.x * THREADS * LOADS + threadIdx.x; at < vectors; at += stride) {
    vector loaded[LOADS];
#pragma unroll
    for (int i = 0; i < LOADS; ++i) loaded[i] = source[at + i * THREADS];
    ALL_LOADS_FIRST;
#pragma unroll
    for (int i = 0; i < LOADS; ++i) {
#if COPY
      target[at + i * THREADS] = loaded[i];
#else
      parity ^= loaded[i].x ^ loaded[i].y ^ loaded[i].z ^ loaded[i].w;
#endif
    }
  }
  if (!COPY) words[blockIdx.x * THREADS + threadIdx.x] = parity;
}
