#include <cmath>

#include "kernels/ref.h"
#include "kernels/swiglu/swiglu_internal.h"

namespace lemo::kernels::reference {

at::Tensor SwiGlu(const at::Tensor& gate, const at::Tensor& up) {
  CheckSwiGlu(gate, up);
  const auto gates = Values(gate);
  const auto ups = Values(up);
  std::vector<double> h(gates.size());
  for (size_t i = 0; i < h.size(); ++i) h[i] = gates[i] / (1.0 + std::exp(-gates[i])) * ups[i];
  return FromValues(h, gate.sizes(), gate.scalar_type());
}

std::tuple<at::Tensor, at::Tensor> SwiGluBackward(const at::Tensor& dh, const at::Tensor& gate,
                                                  const at::Tensor& up) {
  CheckSwiGluBackward(dh, gate, up);
  const auto grads = Values(dh);
  const auto gates = Values(gate);
  const auto ups = Values(up);
  std::vector<double> dgate(gates.size());
  std::vector<double> dup(gates.size());
  for (size_t i = 0; i < gates.size(); ++i) {
    const double sigmoid = 1.0 / (1.0 + std::exp(-gates[i]));
    dgate[i] = grads[i] * ups[i] * sigmoid * (1.0 + gates[i] * (1.0 - sigmoid));
    dup[i] = grads[i] * gates[i] * sigmoid;
  }
  return {FromValues(dgate, gate.sizes(), gate.scalar_type()),
          FromValues(dup, gate.sizes(), gate.scalar_type())};
}

}  // namespace lemo::kernels::reference
