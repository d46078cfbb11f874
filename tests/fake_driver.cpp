// A driver on the CPU, for both vendors' names: it checks how it is called and "runs" residency for a device of three
// units that hold four groups each. A status of 0 is success; each check that fails has a status of its own.
#include <cstddef>
#include <cstring>

static int shared_limit, carveout, loaded, contexts, device;

#define SUCCEEDS(name, ...) \
  extern "C" int name(__VA_ARGS__) { return 0; }
SUCCEEDS(cuInit, unsigned)
SUCCEEDS(hipInit, unsigned)
SUCCEEDS(cuCtxPushCurrent_v2, void*)
SUCCEEDS(cuCtxPopCurrent_v2, void**)

static int say(const char** text) {
  *text = "fake";
  return 0;
}

static int load(void** module, const char* code) {
  ++loaded;
  *module = &loaded;
  return memcmp(code, "\x7f" "ELF", 4) ? 11 : 0;
}

static int find(void** function, const char* name) {
  *function = &shared_limit;
  return strcmp(name, "k") ? 12 : 0;
}

// Not what a driver would say, but what it was asked: threads, bytes and, in millions, the device.
static int ask(int* groups, void* function, int threads, size_t bytes) {
  *groups = threads + (int)bytes + device * 1000000;
  return function != &shared_limit || !loaded;
}

static int run(unsigned x, unsigned y, unsigned z, unsigned a, unsigned b, unsigned c, void** arguments) {
  if (y != 1 || z != 1 || b != 1 || c != 1 || !loaded) return 2;
  int* arrays[5];
  for (int i = 0; i < 5; ++i) arrays[i] = *(int**)arguments[i];
  auto [present, most, visits, seeds, sums] = arrays;
  if (*(int*)arguments[5] != 12345 || present[0]) return 3;
  for (unsigned i = 0; i < x; ++i) {
    ++visits[i % 3];
    most[i % 3] = 4;
  }
  for (unsigned i = 0; i < x * a; ++i) sums[i] = seeds[0] + seeds[1];
  return 0;
}

extern "C" {
int cuDeviceGet(int* device, int index) {
  *device = index;
  return 0;
}
int hipGetDevice(int* device) {
  *device = ::device;
  return 0;
}
int hipSetDevice(int index) {
  device = index;
  return 0;
}
int cuDevicePrimaryCtxRetain(void** context, int index) {
  *context = &contexts;
  device = index;
  ++contexts;
  return 0;
}
int cuDevicePrimaryCtxRelease_v2(int index) {
  if (index != device) return 13;
  device = 0;
  return --contexts;
}
int cuOccupancyMaxActiveBlocksPerMultiprocessor(int* groups, void* function, int threads, size_t bytes) {
  return (size_t)shared_limit != bytes ? 14 : ask(groups, function, threads, bytes);
}
int hipModuleOccupancyMaxActiveBlocksPerMultiprocessor(int* groups, void* function, int threads, size_t bytes) {
  return ask(groups, function, threads, bytes);
}
int left_behind() { return loaded + contexts + device; }
int cuModuleLoadData(void** module, const char* code) { return load(module, code); }
int hipModuleLoadData(void** module, const char* code) { return load(module, code); }
int cuModuleUnload(void*) { return --loaded; }
int hipModuleUnload(void*) { return --loaded; }
int cuModuleGetFunction(void** function, void*, const char* name) { return find(function, name); }
int hipModuleGetFunction(void** function, void*, const char* name) { return find(function, name); }
int cuGetErrorString(int, const char** text) { return say(text); }
int hipDrvGetErrorString(int, const char** text) { return say(text); }
int cuFuncSetAttribute(void*, int attribute, int value) {
  if (attribute == 8) shared_limit = value;
  if (attribute == 9) carveout = value;
  return attribute != 8 && attribute != 9;
}
int cuLaunchKernel(void* function, unsigned x, unsigned y, unsigned z, unsigned a, unsigned b, unsigned c,
                   unsigned shared, void* stream, void** arguments, void** extra) {
  if (function != &shared_limit || (int)shared != shared_limit || carveout != 100 || stream || extra) return 1;
  return run(x, y, z, a, b, c, arguments);
}
int hipModuleLaunchKernel(void* function, unsigned x, unsigned y, unsigned z, unsigned a, unsigned b, unsigned c,
                          unsigned shared, void* stream, void** arguments, void** extra) {
  if (function != &shared_limit || shared != 70000 || stream || extra) return 1;
  return run(x, y, z, a, b, c, arguments);
}
}
