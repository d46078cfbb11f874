// Asks NVIDIA's cuda_occupancy.h, of the toolkit that compiles this, how many blocks of four warps an SM holds for every
// register count that a thread can have. A block puts one warp on every sub-partition. Arguments: what the header wants
// to know of a device, in the order below. Output: blocks for 1, 2, …, 255 registers, one a line.
#include <climits>
#include <cstdio>
#include <cstdlib>

#include "cuda_occupancy.h"

int main(int, char** argument) {
  cudaOccDeviceProp device;
  device.computeMajor = std::atoi(argument[1]);
  device.computeMinor = std::atoi(argument[2]);
  device.maxThreadsPerMultiprocessor = std::atoi(argument[3]);
  device.regsPerMultiprocessor = device.regsPerBlock = std::atoi(argument[4]);
  device.sharedMemPerMultiprocessor = std::atoi(argument[5]);
  device.sharedMemPerBlockOptin = std::atoi(argument[6]);
  device.reservedSharedMemPerBlock = std::atoi(argument[7]);
  device.sharedMemPerBlock = 48 * 1024;
  device.maxThreadsPerBlock = 1024;
  device.warpSize = 32;
  device.numSms = 1;
  for (int registers = 1; registers <= 255; ++registers) {
    cudaOccFuncAttributes function;
    function.maxThreadsPerBlock = INT_MAX;
    function.numRegs = registers;
    function.sharedSizeBytes = 0;
    cudaOccDeviceState state;
    cudaOccResult result;
    if (cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &function, &state, 4 * 32, 0)) return 1;
    std::printf("%d\n", result.activeBlocksPerMultiprocessor);
  }
}
