// Adds to the reference: vector loops with a polynomial exp, and threads over the elements.
#include <ATen/ATen.h>

#include "kernels/cpu_simd.h"
#include "kernels/swiglu/swiglu_internal.h"

namespace lemo::kernels::cpu {
namespace {

constexpr int64_t kGrainElements = 8192;

template <typename T>
LEMO_INLINE void ForwardElements(const T* gate, const T* up, int64_t count, T* h) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    const Wide<T> g = Load(gate[i]);
    h[i] = Round<T>(g / (1 + Exp(-g)) * Load(up[i]));
  }
}

template <typename T>
LEMO_INLINE void BackwardElements(const T* dh, const T* gate, const T* up, int64_t count, T* dgate,
                                  T* dup) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    const Wide<T> g = Load(gate[i]);
    const Wide<T> d = Load(dh[i]);
    const Wide<T> sigmoid = 1 / (1 + Exp(-g));
    dgate[i] = Round<T>(d * Load(up[i]) * sigmoid * (1 + g * (1 - sigmoid)));
    dup[i] = Round<T>(d * g * sigmoid);
  }
}

#define LEMO_SWIGLU_CLONES(T)                                                                      \
  LEMO_SIMD_CLONES void Forward(const T* gate, const T* up, int64_t count, T* h) {                 \
    ForwardElements<T>(gate, up, count, h);                                                        \
  }                                                                                                \
  LEMO_SIMD_CLONES void Backward(const T* dh, const T* gate, const T* up, int64_t count, T* dgate, \
                                 T* dup) {                                                         \
    BackwardElements<T>(dh, gate, up, count, dgate, dup);                                          \
  }
LEMO_SWIGLU_CLONES(double)
LEMO_SWIGLU_CLONES(float)
LEMO_SWIGLU_CLONES(c10::BFloat16)
#undef LEMO_SWIGLU_CLONES

}  // namespace

at::Tensor SwiGlu(const at::Tensor& gate_any, const at::Tensor& up_any) {
  CheckSwiGlu(gate_any, up_any);
  const at::Tensor gate = gate_any.contiguous();
  const at::Tensor up = up_any.contiguous();
  at::Tensor h = at::empty(gate.sizes(), gate.options());
  DispatchType(gate.scalar_type(), [&](auto element) {
    using T = decltype(element);
    const T* gate_data = gate.const_data_ptr<T>();
    const T* up_data = up.const_data_ptr<T>();
    T* h_data = h.mutable_data_ptr<T>();
    at::parallel_for(0, gate.numel(), kGrainElements, [&](int64_t begin, int64_t end) {
      Forward(gate_data + begin, up_data + begin, end - begin, h_data + begin);
    });
  });
  return h;
}

std::tuple<at::Tensor, at::Tensor> SwiGluBackward(const at::Tensor& dh_any,
                                                  const at::Tensor& gate_any,
                                                  const at::Tensor& up_any) {
  CheckSwiGluBackward(dh_any, gate_any, up_any);
  const at::Tensor dh = dh_any.contiguous();
  const at::Tensor gate = gate_any.contiguous();
  const at::Tensor up = up_any.contiguous();
  at::Tensor dgate = at::empty(gate.sizes(), gate.options());
  at::Tensor dup = at::empty(gate.sizes(), gate.options());
  DispatchType(gate.scalar_type(), [&](auto element) {
    using T = decltype(element);
    const T* dh_data = dh.const_data_ptr<T>();
    const T* gate_data = gate.const_data_ptr<T>();
    const T* up_data = up.const_data_ptr<T>();
    T* dgate_data = dgate.mutable_data_ptr<T>();
    T* dup_data = dup.mutable_data_ptr<T>();
    at::parallel_for(0, gate.numel(), kGrainElements, [&](int64_t begin, int64_t end) {
      Backward(dh_data + begin, gate_data + begin, up_data + begin, end - begin, dgate_data + begin,
               dup_data + begin);
    });
  });
  return {dgate, dup};
}

}  // namespace lemo::kernels::cpu
