// An allocator for the CPU that counts what tensors hold, and fails like a card's where it is told to.

#include <atomic>
#include <limits>

#include <c10/core/CPUAllocator.h>
#include <c10/core/alignment.h>

#include "shim.h"

namespace {

constexpr uint64_t kNoLimit = std::numeric_limits<uint64_t>::max();

std::atomic<uint64_t> allocated_bytes{0};
std::atomic<uint64_t> peak_allocated_bytes{0};
std::atomic<uint64_t> limit_bytes{kNoLimit};
std::atomic<uint64_t> allocations{0};
// Of the allocations from now, the one that fails; 0 or less: none.
std::atomic<int64_t> fails_in{0};
std::atomic<uint64_t> failures{0};
std::atomic<uint64_t> failed_asked_bytes{0};
std::atomic<uint64_t> failed_free_bytes{0};

// The size of each allocation lies before it: libtorch frees with nothing but the address.
constexpr size_t kHeaderBytes = c10::gAlignment;
static_assert(kHeaderBytes >= sizeof(uint64_t));

void failed(uint64_t asked, uint64_t free) {
  failed_asked_bytes = asked;
  failed_free_bytes = free;
  ++failures;
}

uint64_t free_bytes(uint64_t held) {
  const uint64_t limit = limit_bytes;
  return held < limit ? limit - held : 0;
}

// Counts `bytes` as allocated, or throws.
void charge(uint64_t bytes) {
  ++allocations;
  if (fails_in > 0 && --fails_in == 0) {
    failed(bytes, 0);
    TORCH_CHECK_WITH(OutOfMemoryError, false, "CPU out of memory. Tried to allocate ", bytes,
                     " bytes, which was told to fail.");
  }
  uint64_t held = allocated_bytes;
  do {
    const uint64_t free = free_bytes(held);
    if (bytes > free) {
      failed(bytes, free);
      TORCH_CHECK_WITH(OutOfMemoryError, false, "CPU out of memory. Tried to allocate ", bytes, " bytes. The limit is ",
                       limit_bytes.load(), " bytes, of which ", free, " bytes are free.");
    }
  } while (!allocated_bytes.compare_exchange_weak(held, held + bytes));
  uint64_t peak = peak_allocated_bytes;
  while (peak < held + bytes && !peak_allocated_bytes.compare_exchange_weak(peak, held + bytes)) {
  }
}

void release(void* data) {
  if (data == nullptr) {
    return;
  }
  char* const block = static_cast<char*>(data) - kHeaderBytes;
  allocated_bytes -= *reinterpret_cast<uint64_t*>(block);
  c10::GetDefaultCPUAllocator()->raw_deallocate(block);
}

struct CountingAllocator final : at::Allocator {
  at::DataPtr allocate(size_t bytes) override {
    const c10::Device device(c10::DeviceType::CPU);
    if (bytes == 0) {
      return {nullptr, nullptr, &release, device};
    }
    charge(bytes);
    char* block = nullptr;
    try {
      block = static_cast<char*>(c10::GetDefaultCPUAllocator()->raw_allocate(bytes + kHeaderBytes));
    } catch (...) {
      allocated_bytes -= bytes;
      failed(bytes, 0);
      throw;
    }
    *reinterpret_cast<uint64_t*>(block) = bytes;
    void* const data = block + kHeaderBytes;
    return {data, data, &release, device};
  }

  at::DeleterFnPtr raw_deleter() const override { return &release; }

  void copy_data(void* to, const void* from, std::size_t bytes) const override { default_copy_data(to, from, bytes); }
};

// Before main, so that no block of the default allocator is ever given to this one's deleter.
[[maybe_unused]] const bool installed = [] {
  static CountingAllocator allocator;
  c10::SetCPUAllocator(&allocator, 1);
  return true;
}();

}  // namespace

extern "C" {

// There is no pool: what is held is what is allocated, and nothing comes from a driver.
void ig_cpu_stats(ig_allocator_stats* stats) {
  const uint64_t allocated = allocated_bytes, peak = peak_allocated_bytes;
  *stats = {allocated, allocated, allocated, 0, peak, peak, 0, failures, 0, 0, kNoLimit};
}

void ig_cpu_reset_peak() { peak_allocated_bytes = allocated_bytes.load(); }

void ig_cpu_limit(uint64_t bytes) { limit_bytes = bytes; }

uint64_t ig_cpu_allocations() { return allocations; }

// The `nth` allocation from now fails, once; 0: none.
void ig_cpu_fail_in(uint64_t nth) { fails_in = static_cast<int64_t>(nth); }

void ig_cpu_last_out_of_memory(ig_out_of_memory* last) { *last = {failures, failed_asked_bytes, failed_free_bytes}; }
}
