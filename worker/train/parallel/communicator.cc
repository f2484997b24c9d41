#include "worker/train/parallel/communicator.h"

#include <ATen/ATen.h>

#include <cstring>
#include <numeric>

namespace lemo::train {
namespace {

class SingleCommunicator final : public Communicator {
 public:
  SingleCommunicator() : Communicator(0, 1) {}

  Pending AllReduce(const at::Tensor&, ReduceOp) override { return {}; }
  Pending ReduceScatter(const at::Tensor& input, const at::Tensor& output,
                        const std::vector<int64_t>&) override {
    if (!output.is_same(input)) at::Tensor(output).copy_(input.view_as(output));
    return {};
  }
  Pending AllGather(const at::Tensor& input, const at::Tensor& output,
                    const std::vector<int64_t>&) override {
    if (input.const_data_ptr() != output.const_data_ptr()) {
      at::Tensor(output).copy_(input.view_as(output));
    }
    return {};
  }
  Pending Broadcast(const at::Tensor&, int) override { return {}; }
  Pending Send(const at::Tensor& tensor, int) override {
    sent_.push_back(tensor.clone());
    return {};
  }
  Pending Receive(const at::Tensor& tensor, int) override {
    TORCH_CHECK(!sent_.empty(), "one rank receives from itself what it has not sent");
    at::Tensor(tensor).copy_(sent_.front());
    sent_.erase(sent_.begin());
    return {};
  }
  void Barrier() override {}
  std::unique_ptr<Communicator> Split(int, int) override {
    return std::make_unique<SingleCommunicator>();
  }

 private:
  std::vector<at::Tensor> sent_;
};

at::Tensor AsBytes(const std::string& text) {
  at::Tensor bytes = at::empty({static_cast<int64_t>(text.size())}, at::kByte);
  std::memcpy(bytes.mutable_data_ptr(), text.data(), text.size());
  return bytes;
}

}  // namespace

std::unique_ptr<Communicator> MakeSingleCommunicator() {
  return std::make_unique<SingleCommunicator>();
}

std::vector<std::string> AllGatherText(Communicator& communicator, const std::string& text) {
  const std::vector<int64_t> one(communicator.size(), 1);
  const at::Tensor lengths = at::empty({communicator.size()}, at::kLong);
  communicator.AllGather(at::full({1}, static_cast<int64_t>(text.size()), at::kLong), lengths, one)
      .Wait();
  const std::vector<int64_t> counts(lengths.const_data_ptr<int64_t>(),
                                    lengths.const_data_ptr<int64_t>() + communicator.size());
  const at::Tensor all =
      at::empty({std::accumulate(counts.begin(), counts.end(), int64_t{0})}, at::kByte);
  communicator.AllGather(AsBytes(text), all, counts).Wait();
  std::vector<std::string> texts;
  const char* next = reinterpret_cast<const char*>(all.const_data_ptr());
  for (const int64_t count : counts) {
    texts.emplace_back(next, count);
    next += count;
  }
  return texts;
}

std::string BroadcastText(Communicator& communicator, const std::string& text, int root) {
  at::Tensor length = at::full({1}, static_cast<int64_t>(text.size()), at::kLong);
  communicator.Broadcast(length, root).Wait();
  at::Tensor bytes =
      communicator.rank() == root ? AsBytes(text) : at::empty({length.item<int64_t>()}, at::kByte);
  communicator.Broadcast(bytes, root).Wait();
  return std::string(reinterpret_cast<const char*>(bytes.const_data_ptr()), bytes.numel());
}

}  // namespace lemo::train
