// One barrier instruction. BARRIER: its number; without it the number is known only at run time.
extern "C" __global__ void __launch_bounds__(64) meet(int which) {
#ifdef BARRIER
  asm volatile("barrier.sync %0;" ::"n"(BARRIER));
#else
  asm volatile("barrier.sync %0;" ::"r"(which));
#endif
}
