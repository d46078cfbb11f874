// A kernel that takes exactly so many vector registers: what is clobbered last decides.
//
//   VGPR     number of the last architectural register, 0 to 255
//   ACCVGPR  optional: number of the last AccVGPR
#define TEXT_(number) #number
#define TEXT(number) TEXT_(number)

extern "C" __global__ __launch_bounds__(256) void take() {
  asm volatile("" ::: "v" TEXT(VGPR));
#ifdef ACCVGPR
  asm volatile("" ::: "a" TEXT(ACCVGPR));
#endif
}
