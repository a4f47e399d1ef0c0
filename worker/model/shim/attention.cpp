// Attention by a named backend. libtorch's own choice goes by switches of the whole process, and may fall back to the one that
// writes out the score matrix.

#include <ATen/ops/_scaled_dot_product_cudnn_attention.h>
#include <ATen/ops/_scaled_dot_product_efficient_attention.h>
#include <ATen/ops/_scaled_dot_product_flash_attention.h>

#include "shim.h"

extern "C" {

// `query`, `key`, `value` are at::Tensor, [batch, heads, tokens, head_dim]; so is `*output`, which belongs to the caller.
const char* ig_attention(int32_t backend, const void* query, const void* key, const void* value, bool causal,
                         const double* scale, void** output) {
  return ig_guarded([&] {
    const auto& q = *static_cast<const at::Tensor*>(query);
    const auto& k = *static_cast<const at::Tensor*>(key);
    const auto& v = *static_cast<const at::Tensor*>(value);
    const auto factor = scale == nullptr ? std::optional<double>() : std::optional<double>(*scale);
    at::Tensor attended;
    switch (backend) {
      case 0:
        attended = std::get<0>(at::_scaled_dot_product_flash_attention(q, k, v, 0.0, causal, false, factor));
        break;
      case 1:
        attended = std::get<0>(
            at::_scaled_dot_product_cudnn_attention(q, k, v, std::nullopt, false, 0.0, causal, false, factor));
        break;
      case 2:
        attended =
            std::get<0>(at::_scaled_dot_product_efficient_attention(q, k, v, std::nullopt, false, 0.0, causal, factor));
        break;
      default:
        TORCH_CHECK(false, "there is no attention backend ", backend);
    }
    *output = new at::Tensor(std::move(attended));
  });
}
}
