// The CUDA half: the caching allocator, events, the current stream and what the runtime says of a device.

#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>
#include <string>

#include <ATen/Context.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

// libtorch 2.11 reads the settings of all devices in one place.
#if __has_include(<c10/core/AllocatorConfig.h>)
#include <c10/core/AllocatorConfig.h>
#define IG_SHARED_ALLOCATOR_CONFIG
#else
#include <c10/cuda/CUDAAllocatorConfig.h>
#endif

#include "shim.h"

// As src/shim/ffi.rs has them.
struct ig_snapshot {
  uint64_t segments;
  uint64_t expandable_segments;
  uint64_t blocks;
  uint64_t free_blocks;
  uint64_t total_bytes;
  uint64_t allocated_bytes;
  uint64_t active_bytes;
  uint64_t largest_free_block_bytes;
};

struct ig_device {
  char name[256];
  char pci_bus_id[32];
  unsigned char uuid[16];
  uint64_t total_bytes;
  int32_t major;
  int32_t minor;
  int32_t multiprocessors;
};

namespace {

namespace allocator = c10::cuda::CUDACachingAllocator;

constexpr uint64_t kUnknown = UINT64_MAX;

std::atomic<uint64_t> failures{0};
std::atomic<uint64_t> failed_asked_bytes{0};
std::atomic<uint64_t> failed_free_bytes{0};

void initialize() {
#ifdef IG_SHARED_ALLOCATOR_CONFIG
  at::globalContext().lazyInitDevice(c10::DeviceType::CUDA);
#else
  at::globalContext().lazyInitCUDA();
#endif
}

c10::DeviceIndex index(int32_t device) { return static_cast<c10::DeviceIndex>(device); }

bool is_native() { return allocator::name() == "native"; }

void write(const std::string& from, char* to, size_t size) { std::snprintf(to, size, "%s", from.c_str()); }

uint64_t unsigned_of(int64_t number) { return number < 0 ? 0 : static_cast<uint64_t>(number); }

}  // namespace

extern "C" {

// Makes the device ready and starts to watch for allocations that fail, which only the native allocator tells.
const char* ig_cuda_initialize(int32_t device) {
  return ig_guarded([&] {
    initialize();
    c10::cuda::CUDAGuard guard(index(device));
    C10_CUDA_CHECK(cudaFree(nullptr));
    static std::once_flag once;
    std::call_once(once, [] {
      if (is_native()) {
        // Called under the allocator's lock, so it must not allocate or wait.
        allocator::attachOutOfMemoryObserver([](int64_t, size_t asked, size_t, size_t free) {
          failed_asked_bytes = asked;
          failed_free_bytes = free;
          ++failures;
        });
      }
    });
  });
}

const char* ig_cuda_stats(int32_t device, ig_allocator_stats* out) {
  return ig_guarded([&] {
    const auto stats = allocator::getDeviceStats(index(device));
    const auto current = [](const auto& of) { return unsigned_of(of[0].current); };
    const auto peak = [](const auto& of) { return unsigned_of(of[0].peak); };
    uint64_t largest = kUnknown;
    if (is_native()) {
      // 0 would ask for the free memory of the device. The asynchronous allocator would find out by allocating.
      size_t block = 1;
      allocator::cacheInfo(index(device), &block);
      largest = block > 1 ? block : 0;
    }
    *out = {current(stats.allocated_bytes),
            current(stats.reserved_bytes),
            current(stats.active_bytes),
            current(stats.inactive_split_bytes),
            peak(stats.allocated_bytes),
            peak(stats.reserved_bytes),
            unsigned_of(stats.num_alloc_retries),
            unsigned_of(stats.num_ooms),
            unsigned_of(stats.num_device_alloc),
            unsigned_of(stats.num_device_free),
            largest};
  });
}

const char* ig_cuda_reset_peaks(int32_t device) {
  return ig_guarded([&] { allocator::resetPeakStats(index(device)); });
}

const char* ig_cuda_empty_cache() {
  return ig_guarded([] { allocator::emptyCache(); });
}

const char* ig_cuda_set_memory_fraction(int32_t device, double fraction) {
  return ig_guarded([&] { allocator::setMemoryFraction(fraction, index(device)); });
}

const char* ig_cuda_settings(char* text, size_t size) {
  return ig_guarded([&] {
#ifdef IG_SHARED_ALLOCATOR_CONFIG
    write(c10::CachingAllocator::getAllocatorSettings(), text, size);
#else
    write(allocator::CUDAAllocatorConfig::last_allocator_settings(), text, size);
#endif
  });
}

const char* ig_cuda_backend(char* text, size_t size) {
  return ig_guarded([&] { write(allocator::name(), text, size); });
}

const char* ig_cuda_snapshot(int32_t device, ig_snapshot* out) {
  return ig_guarded([&] {
    TORCH_CHECK(is_native(), "the allocator ", allocator::name(), " keeps no list of its segments");
    ig_snapshot sum = {};
    for (const auto& segment : allocator::snapshot().segments) {
      if (segment.device != index(device)) {
        continue;
      }
      ++sum.segments;
      sum.expandable_segments += segment.is_expandable;
      sum.blocks += segment.blocks.size();
      sum.total_bytes += segment.total_size;
      sum.allocated_bytes += segment.allocated_size;
      sum.active_bytes += segment.active_size;
      for (const auto& block : segment.blocks) {
        if (!block.active) {
          ++sum.free_blocks;
          sum.largest_free_block_bytes = std::max<uint64_t>(sum.largest_free_block_bytes, block.size);
        }
      }
    }
    *out = sum;
  });
}

void ig_cuda_last_out_of_memory(ig_out_of_memory* last) { *last = {failures, failed_asked_bytes, failed_free_bytes}; }

const char* ig_cuda_memory(int32_t device, uint64_t* free_bytes, uint64_t* total_bytes) {
  return ig_guarded([&] {
    c10::cuda::CUDAGuard guard(index(device));
    size_t free = 0, total = 0;
    C10_CUDA_CHECK(cudaMemGetInfo(&free, &total));
    *free_bytes = free;
    *total_bytes = total;
  });
}

const char* ig_cuda_synchronize(int32_t device) {
  return ig_guarded([&] {
    c10::cuda::CUDAGuard guard(index(device));
    C10_CUDA_CHECK(cudaDeviceSynchronize());
  });
}

const char* ig_cuda_current_stream(int32_t device, void** stream) {
  return ig_guarded([&] { *stream = c10::cuda::getCurrentCUDAStream(index(device)).stream(); });
}

const char* ig_cuda_event_create(int32_t device, void** event) {
  return ig_guarded([&] {
    c10::cuda::CUDAGuard guard(index(device));
    cudaEvent_t created = nullptr;
    C10_CUDA_CHECK(cudaEventCreate(&created));
    *event = created;
  });
}

void ig_cuda_event_destroy(void* event) {
  // After a sticky error this fails too, and there is nobody to tell.
  (void)cudaEventDestroy(static_cast<cudaEvent_t>(event));
}

const char* ig_cuda_event_record(int32_t device, void* event) {
  return ig_guarded([&] {
    const auto stream = c10::cuda::getCurrentCUDAStream(index(device));
    C10_CUDA_CHECK(cudaEventRecord(static_cast<cudaEvent_t>(event), stream.stream()));
  });
}

const char* ig_cuda_event_synchronize(void* event) {
  return ig_guarded([&] { C10_CUDA_CHECK(cudaEventSynchronize(static_cast<cudaEvent_t>(event))); });
}

const char* ig_cuda_event_query(void* event, bool* done) {
  return ig_guarded([&] {
    const cudaError_t state = cudaEventQuery(static_cast<cudaEvent_t>(event));
    if (state == cudaErrorNotReady) {
      // Otherwise the next check of libtorch would find it.
      (void)cudaGetLastError();
      *done = false;
      return;
    }
    C10_CUDA_CHECK(state);
    *done = true;
  });
}

const char* ig_cuda_event_elapsed(void* start, void* end, float* milliseconds) {
  return ig_guarded([&] {
    C10_CUDA_CHECK(
        cudaEventElapsedTime(milliseconds, static_cast<cudaEvent_t>(start), static_cast<cudaEvent_t>(end)));
  });
}

const char* ig_cuda_device(int32_t device, ig_device* out) {
  return ig_guarded([&] {
    cudaDeviceProp properties;
    C10_CUDA_CHECK(cudaGetDeviceProperties(&properties, device));
    ig_device found = {};
    std::snprintf(found.name, sizeof found.name, "%s", properties.name);
    C10_CUDA_CHECK(cudaDeviceGetPCIBusId(found.pci_bus_id, sizeof found.pci_bus_id, device));
    static_assert(sizeof found.uuid == sizeof properties.uuid.bytes);
    std::memcpy(found.uuid, properties.uuid.bytes, sizeof found.uuid);
    found.total_bytes = properties.totalGlobalMem;
    found.major = properties.major;
    found.minor = properties.minor;
    found.multiprocessors = properties.multiProcessorCount;
    *out = found;
  });
}
}
