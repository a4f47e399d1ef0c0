// What libtorch offers in C++ only, as C functions for src/shim.
//
// cpu.cpp and attention.cpp are linked into the program and need libtorch's CPU part alone. cuda.cpp is a shared object of
// its own, because it cannot be loaded before libtorch_cuda.so. No exception leaves a function here: those that can fail return
// null or a text, which lives until the same thread calls again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>

#include <c10/util/Exception.h>

// As imagegen_core::engine::AllocatorStats. src/shim/ffi.rs has the same structs.
struct ig_allocator_stats {
  uint64_t allocated_bytes;
  uint64_t reserved_bytes;
  uint64_t active_bytes;
  uint64_t inactive_split_bytes;
  uint64_t peak_allocated_bytes;
  uint64_t peak_reserved_bytes;
  uint64_t alloc_retries;
  uint64_t out_of_memory;
  uint64_t device_allocations;
  uint64_t device_frees;
  // UINT64_MAX: the allocator does not tell.
  uint64_t largest_free_block_bytes;
};

// The last allocation that failed; all zero before the first.
struct ig_out_of_memory {
  uint64_t count;
  uint64_t asked_bytes;
  uint64_t free_bytes;
};

// What `run` throws, as a text of this thread.
template <typename Run>
const char* ig_guarded(Run run) noexcept {
  static thread_local char text[4096];
  const auto say = [](const char* what) {
    std::snprintf(text, sizeof text, "%s", what);
    return text;
  };
  try {
    run();
    return nullptr;
  } catch (const c10::Error& error) {
    return say(error.what_without_backtrace());
  } catch (const std::exception& error) {
    return say(error.what());
  } catch (...) {
    return say("a C++ exception that is no std::exception");
  }
}
