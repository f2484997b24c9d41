#include "worker/train/parallel/mpi_communicator.h"

#include <ATen/ATen.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <cstdlib>
#include <functional>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "worker/train/parallel/mpi_thread.h"

namespace lemo::train {
namespace {

// Elements in one call: MPI counts in int.
constexpr int64_t kMostElements = int64_t{1} << 28;

MPI_Datatype TypeOf(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kDouble:
      return MPI_DOUBLE;
    case at::kFloat:
      return MPI_FLOAT;
    case at::kBFloat16:
      return MPI_UINT16_T;
    case at::kLong:
      return MPI_INT64_T;
    case at::kInt:
      return MPI_INT32_T;
    case at::kByte:
      return MPI_UINT8_T;
    default:
      TORCH_CHECK(false, "ranks do not exchange tensors of type ", tensor.scalar_type());
  }
}

void CheckTensor(const at::Tensor& tensor) {
  TORCH_CHECK(tensor.is_cpu() && tensor.is_contiguous(),
              "ranks exchange contiguous CPU tensors over MPI");
}

std::vector<int> AsInts(const std::vector<int64_t>& counts, std::vector<int>* starts) {
  std::vector<int> ints;
  int64_t sum = 0;
  for (const int64_t count : counts) {
    starts->push_back(static_cast<int>(sum));
    ints.push_back(static_cast<int>(count));
    sum += count;
  }
  TORCH_CHECK(sum <= std::numeric_limits<int>::max(), "one operation of ", sum,
              " elements; MPI counts to 2^31");
  return ints;
}

std::string OperationName(const char* verb, const at::Tensor& tensor) {
  return absl::StrCat(verb, " of ", tensor.nbytes(), " bytes");
}

class MpiCommunicator final : public Communicator {
 public:
  MpiCommunicator(MpiThread* thread, MPI_Comm comm, int rank, int size)
      : Communicator(rank, size), thread_(thread), comm_(comm) {}

  Pending AllReduce(const at::Tensor& tensor, ReduceOp op) override {
    CheckTensor(tensor);
    if (size() == 1 || tensor.numel() == 0) return {};
    Count(tensor);
    const at::ScalarType type = tensor.scalar_type();
    const MPI_Op operation = op == ReduceOp::kSum ? thread_->sum(type) : thread_->max(type);
    return Start("a sum", {tensor}, [=, comm = comm_](std::vector<MPI_Request>* requests) {
      ForParts(tensor, [&](void* data, int count) {
        MPI_Iallreduce(MPI_IN_PLACE, data, count, TypeOf(tensor), operation, comm,
                       &requests->emplace_back());
      });
    });
  }

  Pending ReduceScatter(const at::Tensor& input, const at::Tensor& output,
                        const std::vector<int64_t>& counts) override {
    CheckTensor(input);
    CheckTensor(output);
    if (size() == 1) {
      at::Tensor(output).copy_(input.view_as(output));
      return {};
    }
    Count(input);
    std::vector<int> starts;
    const std::vector<int> parts = AsInts(counts, &starts);
    const MPI_Op operation = thread_->sum(input.scalar_type());
    return Start(
        "a scattered sum", {input, output}, [=, comm = comm_](std::vector<MPI_Request>* requests) {
          MPI_Ireduce_scatter(input.const_data_ptr(), output.mutable_data_ptr(), parts.data(),
                              TypeOf(input), operation, comm, &requests->emplace_back());
        });
  }

  Pending AllGather(const at::Tensor& input, const at::Tensor& output,
                    const std::vector<int64_t>& counts) override {
    CheckTensor(input);
    CheckTensor(output);
    const bool in_place =
        input.const_data_ptr() == static_cast<const char*>(output.const_data_ptr()) +
                                      Before(counts) * static_cast<int64_t>(input.element_size());
    if (size() == 1) {
      if (!in_place) at::Tensor(output).copy_(input.view_as(output));
      return {};
    }
    Count(output);
    auto starts = std::make_shared<std::vector<int>>();
    auto parts = std::make_shared<std::vector<int>>(AsInts(counts, starts.get()));
    return Start("a gathering", {input, output},
                 [=, comm = comm_](std::vector<MPI_Request>* requests) {
                   MPI_Iallgatherv(in_place ? MPI_IN_PLACE : input.const_data_ptr(),
                                   static_cast<int>(input.numel()), TypeOf(input),
                                   output.mutable_data_ptr(), parts->data(), starts->data(),
                                   TypeOf(output), comm, &requests->emplace_back());
                 });
  }

  Pending Broadcast(const at::Tensor& tensor, int root) override {
    CheckTensor(tensor);
    if (size() == 1 || tensor.numel() == 0) return {};
    Count(tensor);
    return Start("a broadcast", {tensor}, [=, comm = comm_](std::vector<MPI_Request>* requests) {
      ForParts(tensor, [&](void* data, int count) {
        MPI_Ibcast(data, count, TypeOf(tensor), root, comm, &requests->emplace_back());
      });
    });
  }

  Pending Send(const at::Tensor& tensor, int to) override {
    Count(tensor);
    CheckTensor(tensor);
    return Start("a sending", {tensor}, [=, comm = comm_](std::vector<MPI_Request>* requests) {
      ForParts(tensor, [&](void* data, int count) {
        MPI_Isend(data, count, TypeOf(tensor), to, 0, comm, &requests->emplace_back());
      });
    });
  }

  Pending Receive(const at::Tensor& tensor, int from) override {
    CheckTensor(tensor);
    return Start("a receipt", {tensor}, [=, comm = comm_](std::vector<MPI_Request>* requests) {
      ForParts(tensor, [&](void* data, int count) {
        MPI_Irecv(data, count, TypeOf(tensor), from, 0, comm, &requests->emplace_back());
      });
    });
  }

  void Barrier() override {
    if (size() == 1) return;
    const auto operation = thread_->Begin("a meeting of all ranks", {},
                                          [comm = comm_](std::vector<MPI_Request>* requests) {
                                            MPI_Ibarrier(comm, &requests->emplace_back());
                                          });
    thread_->Wait(*operation);
  }

  std::unique_ptr<Communicator> Split(int color, int key) override {
    // Shared, not on this stack: the wait may end before the MPI thread does.
    struct Made {
      MPI_Comm comm = MPI_COMM_NULL;
      int rank = 0, size = 1;
    };
    const auto made = std::make_shared<Made>();
    const auto operation =
        thread_->Begin("the making of groups", {}, [=, comm = comm_](std::vector<MPI_Request>*) {
          MPI_Comm_split(comm, color, key, &made->comm);
          MPI_Comm_rank(made->comm, &made->rank);
          MPI_Comm_size(made->comm, &made->size);
        });
    thread_->Wait(*operation);
    return std::make_unique<MpiCommunicator>(thread_, made->comm, made->rank, made->size);
  }

 private:
  int64_t Before(const std::vector<int64_t>& counts) const {
    int64_t before = 0;
    for (int i = 0; i < rank(); ++i) before += counts[static_cast<size_t>(i)];
    return before;
  }

  template <typename Call>
  static void ForParts(const at::Tensor& tensor, const Call& call) {
    auto* data = static_cast<char*>(tensor.mutable_data_ptr());
    int64_t first = 0;
    do {
      const int64_t count = std::min(kMostElements, tensor.numel() - first);
      call(data + first * static_cast<int64_t>(tensor.element_size()), static_cast<int>(count));
      first += count;
    } while (first < tensor.numel());
  }

  Pending Start(const char* verb, std::vector<at::Tensor> tensors,
                std::function<void(std::vector<MPI_Request>*)> start) {
    std::string name = OperationName(verb, tensors.front());
    auto operation = thread_->Begin(std::move(name), std::move(tensors), std::move(start));
    return Pending([thread = thread_, operation] { thread->Wait(*operation); });
  }

  MpiThread* thread_;
  MPI_Comm comm_;
};

// The same for ranks of one node, and for no others. Besides the machine's name, which containers
// may share, the server that has started its ranks there: a node is what one agent gives.
int64_t NodeIdentity() {
  char name[HOST_NAME_MAX + 1] = {};
  ::gethostname(name, HOST_NAME_MAX);
  std::string identity = name;
  if (const char* server = std::getenv("PMIX_SERVER_URI2"); server != nullptr) {
    absl::StrAppend(&identity, " ", server);
  }
  return static_cast<int64_t>(std::hash<std::string>()(identity));
}

}  // namespace

std::unique_ptr<Communicator> MakeWorldCommunicator(MpiThread* thread) {
  return std::make_unique<MpiCommunicator>(thread, MPI_COMM_WORLD, thread->rank(), thread->size());
}

// Not by MPI_Comm_split_type: where there are several nodes, groups that Open MPI 4 makes so hang
// when ranks do not come at the same time (open-mpi/ompi issue 9010).
std::unique_ptr<Communicator> MakeNodeCommunicator(MpiThread* thread) {
  MpiCommunicator world(thread, MPI_COMM_WORLD, thread->rank(), thread->size());
  const at::Tensor all = at::empty({world.size()}, at::kLong);
  const at::Tensor own = at::full({1}, NodeIdentity(), at::kLong);
  world.AllGather(own, all, std::vector<int64_t>(static_cast<size_t>(world.size()), 1)).Wait();
  const int64_t* first = all.const_data_ptr<int64_t>();
  const int64_t* same = std::find(first, first + world.size(), first[world.rank()]);
  return world.Split(static_cast<int>(same - first), world.rank());
}

}  // namespace lemo::train
