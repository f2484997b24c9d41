// What the ranks of a gang say to one another about tensors.
//
// Operations are asynchronous: a call hands the operation over and returns; Pending::Wait says that
// its result may be used. Every rank of a communicator must call the same operations in the same
// order, with the same sizes. Results do not depend on timing, and every rank gets the same bits.
//
// Tensors are contiguous and stay untouched by the caller until Wait; their memory is kept alive
// until then. Types: float64, float32, bfloat16, float16 (CUDA), int64, int32, uint8. bfloat16 is
// added in fp32 and rounded at each addition.
//
// A wait that lasts longer than the gang's timeout, or that the failure of another rank ends,
// throws GangError, which names that rank. One thread calls (the main thread of the rank).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"

namespace lemo::train {

// The gang cannot go on. `status` is the first cause that this rank heard of.
class GangError : public std::runtime_error {
 public:
  explicit GangError(absl::Status status)
      : std::runtime_error(std::string(status.message())), status_(std::move(status)) {}
  const absl::Status& status() const { return status_; }

 private:
  absl::Status status_;
};

// An operation under way. Dropping it does not stop the operation.
class Pending {
 public:
  Pending() = default;  // nothing to wait for
  explicit Pending(std::function<void()> wait) : wait_(std::move(wait)) {}
  // On CUDA the stream at hand waits, not the host. Again: nothing.
  void Wait() {
    if (const auto wait = std::exchange(wait_, nullptr)) wait();
  }

 private:
  std::function<void()> wait_;
};

enum class ReduceOp { kSum, kMax };

class Communicator {
 public:
  virtual ~Communicator() = default;
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }

  // In place.
  virtual Pending AllReduce(const at::Tensor& tensor, ReduceOp op) = 0;
  // `input` is the parts of all ranks one after another, part r of counts[r] elements; `output`
  // [counts[rank()]] becomes the sum over ranks of their inputs' part rank().
  virtual Pending ReduceScatter(const at::Tensor& input, const at::Tensor& output,
                                const std::vector<int64_t>& counts) = 0;
  // The other way: `input` [counts[rank()]] of every rank, one after another. `input` may be its
  // very place in `output`.
  virtual Pending AllGather(const at::Tensor& input, const at::Tensor& output,
                            const std::vector<int64_t>& counts) = 0;
  virtual Pending Broadcast(const at::Tensor& tensor, int root) = 0;
  // Over NCCL one ends before the next of the same rank begins, so that not all of a ring may send
  // first.
  virtual Pending Send(const at::Tensor& tensor, int to) = 0;
  virtual Pending Receive(const at::Tensor& tensor, int from) = 0;
  // Returns when every rank has called it.
  virtual void Barrier() = 0;
  // The host waits for everything that was called before: on CUDA, where Pending::Wait does not,
  // this is where a late rank is noticed. To be called before the host reads a result.
  virtual void Settle() {}
  // Ranks that give one color form a communicator, ordered by key, then rank. All ranks call.
  virtual std::unique_ptr<Communicator> Split(int color, int key) = 0;

  // Bytes that this rank has handed to reductions, gathers, broadcasts and sends with others: the
  // elements of the tensor given, whatever an algorithm makes of them.
  int64_t bytes() const { return bytes_; }

 protected:
  Communicator(int rank, int size) : rank_(rank), size_(size) {}
  void Count(const at::Tensor& tensor) { bytes_ += static_cast<int64_t>(tensor.nbytes()); }

 private:
  int rank_;
  int size_;
  int64_t bytes_ = 0;
};

// Of one rank: everything is done when it is called.
std::unique_ptr<Communicator> MakeSingleCommunicator();

// Texts of all ranks, by rank. Waits. On a communicator that carries CPU tensors.
std::vector<std::string> AllGatherText(Communicator& communicator, const std::string& text);
// The root's text.
std::string BroadcastText(Communicator& communicator, const std::string& text, int root);

}  // namespace lemo::train
