// Asks NVIDIA's cuda_occupancy.h about every launch on stdin. Both streams are rows of int32, in the order of the
// structs below; tests/test_occupancy_oracles.py writes and reads them.
//
//   g++ -O2 -I<folder of cuda_occupancy.h> cuda_occupancy_driver.cpp -o driver

#include <climits>
#include <cstdio>

#include "cuda_occupancy.h"

struct Launch {
    int major, minor, threads_per_sm, shared_per_sm, shared_optin, shared_reserved;
    int registers, static_shared, dynamic_shared, threads, barriers;
};

struct Answer {
    int status, blocks, waves, groups, registers, shared, barriers, factors;
};

static Answer ask(const Launch &launch) {
    cudaOccDeviceProp device;
    device.computeMajor = launch.major;
    device.computeMinor = launch.minor;
    device.maxThreadsPerBlock = 1024;
    device.maxThreadsPerMultiprocessor = launch.threads_per_sm;
    device.regsPerBlock = 65536;
    device.regsPerMultiprocessor = 65536;
    device.warpSize = 32;
    device.sharedMemPerBlock = 48 * 1024;
    device.sharedMemPerMultiprocessor = launch.shared_per_sm;
    device.numSms = 1;
    device.sharedMemPerBlockOptin = launch.shared_optin;
    device.reservedSharedMemPerBlock = launch.shared_reserved;

    cudaOccFuncAttributes function;
    function.maxThreadsPerBlock = INT_MAX;
    function.numRegs = launch.registers;
    function.sharedSizeBytes = launch.static_shared;
    function.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;  // the kernel has opted in to what it asks for
    function.maxDynamicSharedSizeBytes = launch.dynamic_shared;
    function.numBlockBarriers = launch.barriers;

    cudaOccDeviceState state;  // no preference: the largest carve-out
    cudaOccResult result = {};
    int status = cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &function, &state, launch.threads,
                                                         launch.dynamic_shared);
    return {status,
            result.activeBlocksPerMultiprocessor,
            result.blockLimitWarps,
            result.blockLimitBlocks,
            result.blockLimitRegs,
            result.blockLimitSharedMem,
            result.blockLimitBarriers,
            static_cast<int>(result.limitingFactors)};
}

int main() {
    Launch launch;
    while (std::fread(&launch, sizeof launch, 1, stdin) == 1) {
        Answer answer = ask(launch);
        std::fwrite(&answer, sizeof answer, 1, stdout);
    }
    return 0;
}
