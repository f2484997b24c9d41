#include "worker/train/parallel/nccl_communicator.h"

#include <ATen/ATen.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <dlfcn.h>

#include <chrono>
#include <cstring>
#include <thread>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace lemo::train {
namespace {

// What of nccl.h (2.18 and newer) is used: declared here, so that building needs no CUDA.
struct NcclComm;
struct NcclUniqueId {
  char bytes[128];
};
using NcclResult = int;
constexpr NcclResult kNcclSuccess = 0, kNcclInProgress = 7;
enum NcclType { kUint8 = 1, kInt32 = 2, kInt64 = 4, kFloat16 = 6, kFloat32, kFloat64, kBfloat16 };
enum NcclOp { kNcclSum = 0, kNcclMax = 2 };

struct Nccl {
  NcclResult (*GetUniqueId)(NcclUniqueId*);
  NcclResult (*CommInitRank)(NcclComm**, int ranks, NcclUniqueId, int rank);
  NcclResult (*CommDestroy)(NcclComm*);
  NcclResult (*CommAbort)(NcclComm*);
  NcclResult (*CommGetAsyncError)(NcclComm*, NcclResult*);
  NcclResult (*AllReduce)(const void*, void*, size_t, NcclType, NcclOp, NcclComm*, void* stream);
  NcclResult (*Reduce)(const void*, void*, size_t, NcclType, NcclOp, int root, NcclComm*, void*);
  NcclResult (*Broadcast)(const void*, void*, size_t, NcclType, int root, NcclComm*, void*);
  NcclResult (*Send)(const void*, size_t, NcclType, int peer, NcclComm*, void*);
  NcclResult (*Recv)(void*, size_t, NcclType, int peer, NcclComm*, void*);
  NcclResult (*GroupStart)();
  NcclResult (*GroupEnd)();
  const char* (*GetErrorString)(NcclResult);
};

absl::StatusOr<const Nccl*> LoadNccl() {
  static Nccl nccl;
  static const absl::Status loaded = [] {
    void* library = ::dlopen("libnccl.so.2", RTLD_NOW | RTLD_GLOBAL);
    if (library == nullptr) {
      return absl::FailedPreconditionError(
          absl::StrCat("several ranks on CUDA devices need NCCL: ", ::dlerror()));
    }
    const auto find = [library](const char* name, auto* function) {
      *function =
          reinterpret_cast<std::remove_reference_t<decltype(*function)>>(::dlsym(library, name));
      return *function != nullptr;
    };
    const bool complete =
        find("ncclGetUniqueId", &nccl.GetUniqueId) &&
        find("ncclCommInitRank", &nccl.CommInitRank) &&
        find("ncclCommDestroy", &nccl.CommDestroy) && find("ncclCommAbort", &nccl.CommAbort) &&
        find("ncclCommGetAsyncError", &nccl.CommGetAsyncError) &&
        find("ncclAllReduce", &nccl.AllReduce) && find("ncclReduce", &nccl.Reduce) &&
        find("ncclBroadcast", &nccl.Broadcast) && find("ncclSend", &nccl.Send) &&
        find("ncclRecv", &nccl.Recv) && find("ncclGroupStart", &nccl.GroupStart) &&
        find("ncclGroupEnd", &nccl.GroupEnd) && find("ncclGetErrorString", &nccl.GetErrorString);
    return complete ? absl::OkStatus()
                    : absl::FailedPreconditionError("libnccl.so.2 lacks functions of NCCL 2.18");
  }();
  if (!loaded.ok()) return loaded;
  return &nccl;
}

NcclType TypeOf(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kDouble:
      return kFloat64;
    case at::kFloat:
      return kFloat32;
    case at::kBFloat16:
      return kBfloat16;
    case at::kHalf:
      return kFloat16;
    case at::kLong:
      return kInt64;
    case at::kInt:
      return kInt32;
    case at::kByte:
      return kUint8;
    default:
      TORCH_CHECK(false, "ranks do not exchange tensors of type ", tensor.scalar_type());
  }
}

class NcclCommunicator final : public Communicator {
 public:
  NcclCommunicator(const Nccl* nccl, NcclComm* comm, std::unique_ptr<Communicator> control,
                   c10::Device device)
      : Communicator(control->rank(), control->size()),
        nccl_(nccl),
        comm_(comm),
        control_(std::move(control)),
        device_(device),
        guard_(device.type()),
        stream_(guard_.getStreamFromGlobalPool(device, /*isHighPriority=*/true)) {}

  // A communicator with an operation that will never end can only be aborted.
  ~NcclCommunicator() override {
    if (last_ && !guard_.queryEvent(last_)) {
      nccl_->CommAbort(comm_);
    } else {
      nccl_->CommDestroy(comm_);
    }
    if (last_) guard_.destroyEvent(last_, device_.index());
  }

  Pending AllReduce(const at::Tensor& tensor, ReduceOp op) override {
    Count(tensor);
    return Call({tensor}, [&](void* stream) {
      Check(nccl_->AllReduce(tensor.const_data_ptr(), tensor.mutable_data_ptr(), tensor.numel(),
                             TypeOf(tensor), op == ReduceOp::kSum ? kNcclSum : kNcclMax, comm_,
                             stream));
    });
  }

  // NCCL's own takes equal parts only.
  Pending ReduceScatter(const at::Tensor& input, const at::Tensor& output,
                        const std::vector<int64_t>& counts) override {
    Count(input);
    return Call({input, output}, [&](void* stream) {
      Group([&] {
        ForParts(input, counts, [&](int root, const char* part, int64_t count) {
          Check(nccl_->Reduce(part, output.mutable_data_ptr(), count, TypeOf(input), kNcclSum, root,
                              comm_, stream));
        });
      });
    });
  }

  Pending AllGather(const at::Tensor& input, const at::Tensor& output,
                    const std::vector<int64_t>& counts) override {
    Count(output);
    return Call({input, output}, [&](void* stream) {
      Group([&] {
        ForParts(output, counts, [&](int root, const char* part, int64_t count) {
          const void* from = root == rank() ? input.const_data_ptr() : part;
          Check(nccl_->Broadcast(from, const_cast<char*>(part), count, TypeOf(output), root, comm_,
                                 stream));
        });
      });
    });
  }

  Pending Broadcast(const at::Tensor& tensor, int root) override {
    Count(tensor);
    return Call({tensor}, [&](void* stream) {
      Check(nccl_->Broadcast(tensor.const_data_ptr(), tensor.mutable_data_ptr(), tensor.numel(),
                             TypeOf(tensor), root, comm_, stream));
    });
  }

  Pending Send(const at::Tensor& tensor, int to) override {
    Count(tensor);
    return Call({tensor}, [&](void* stream) {
      Check(
          nccl_->Send(tensor.const_data_ptr(), tensor.numel(), TypeOf(tensor), to, comm_, stream));
    });
  }

  Pending Receive(const at::Tensor& tensor, int from) override {
    return Call({tensor}, [&](void* stream) {
      Check(nccl_->Recv(tensor.mutable_data_ptr(), tensor.numel(), TypeOf(tensor), from, comm_,
                        stream));
    });
  }

  void Barrier() override {
    Settle();
    control_->Barrier();
  }

  // The ranks meet over `control_` first: a rank that does not come is named there, with a
  // deadline; after that all kernels are on their way and end soon, unless a device or link has
  // failed.
  void Settle() override {
    if (!last_) return;
    control_->Barrier();
    while (!guard_.queryEvent(last_)) {
      NcclResult result = kNcclSuccess;
      Check(nccl_->CommGetAsyncError(comm_, &result));
      if (result != kNcclInProgress) Check(result);
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
  }

  std::unique_ptr<Communicator> Split(int color, int key) override {
    auto made = MakeNcclCommunicator(control_->Split(color, key), device_);
    if (!made.ok()) throw GangError(made.status());
    return *std::move(made);
  }

 private:
  void Check(NcclResult result) const {
    if (result == kNcclSuccess) return;
    throw GangError(absl::InternalError(absl::StrCat("NCCL: ", nccl_->GetErrorString(result))));
  }

  template <typename Function>
  void Group(const Function& function) const {
    Check(nccl_->GroupStart());
    function();
    Check(nccl_->GroupEnd());
  }

  template <typename Function>
  static void ForParts(const at::Tensor& whole, const std::vector<int64_t>& counts,
                       const Function& function) {
    const char* part = static_cast<const char*>(whole.const_data_ptr());
    for (size_t r = 0; r < counts.size(); ++r) {
      if (counts[r] > 0) function(static_cast<int>(r), part, counts[r]);
      part += counts[r] * static_cast<int64_t>(whole.element_size());
    }
  }

  // Runs `enqueue` on our stream, behind the current one.
  template <typename Enqueue>
  Pending Call(const std::vector<at::Tensor>& tensors, const Enqueue& enqueue) {
    for (const at::Tensor& tensor : tensors) {
      TORCH_CHECK(tensor.device() == device_ && tensor.is_contiguous(),
                  "ranks exchange contiguous tensors of ", device_, " over NCCL");
      tensor.record_stream(stream_);
    }
    const c10::Stream current = guard_.getStream(device_);
    void* before = nullptr;
    guard_.record(&before, current, device_.index(), c10::EventFlag::PYTORCH_DEFAULT);
    guard_.block(before, stream_);
    guard_.destroyEvent(before, device_.index());
    enqueue(stream_.native_handle());
    guard_.record(&last_, stream_, device_.index(), c10::EventFlag::PYTORCH_DEFAULT);
    // The stream is in order: its newest event is after this operation.
    auto done = std::make_shared<c10::Event>(device_.type());
    done->record(stream_);
    return Pending([this, done] { done->block(guard_.getStream(device_)); });
  }

  const Nccl* nccl_;
  NcclComm* comm_;
  std::unique_ptr<Communicator> control_;
  c10::Device device_;
  c10::impl::VirtualGuardImpl guard_;
  c10::Stream stream_;
  void* last_ = nullptr;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Communicator>> MakeNcclCommunicator(
    std::unique_ptr<Communicator> control, c10::Device device) {
  LEMO_ASSIGN_OR_RETURN(const Nccl* nccl, LoadNccl());
  c10::impl::VirtualGuardImpl(device.type()).setDevice(device);
  NcclUniqueId id{};
  const auto check = [nccl](NcclResult result) {
    return result == kNcclSuccess
               ? absl::OkStatus()
               : absl::InternalError(
                     absl::StrCat("NCCL cannot connect the ranks: ", nccl->GetErrorString(result)));
  };
  if (control->rank() == 0) LEMO_RETURN_IF_ERROR(check(nccl->GetUniqueId(&id)));
  at::Tensor bytes = at::empty({static_cast<int64_t>(sizeof(id))}, at::kByte);
  std::memcpy(bytes.mutable_data_ptr(), &id, sizeof(id));
  control->Broadcast(bytes, 0).Wait();
  std::memcpy(&id, bytes.const_data_ptr(), sizeof(id));
  NcclComm* comm = nullptr;
  LEMO_RETURN_IF_ERROR(check(nccl->CommInitRank(&comm, control->size(), id, control->rank())));
  return std::make_unique<NcclCommunicator>(nccl, comm, std::move(control), device);
}

}  // namespace lemo::train
