#include "worker/train/parallel/gang.h"

#include <ATen/ATen.h>

#include <map>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status_macros.h"
#include "nlohmann/json.hpp"
#ifdef LEMO_MPI
#include "worker/train/parallel/mpi_world.h"
#endif
#include "worker/train/parallel/nccl_communicator.h"
#include "worker/train/parallel/status_text.h"

namespace lemo::train {

#ifndef LEMO_MPI
// A build without MPI has the same gangs of one.
class MpiWorld {
 public:
  double waited_seconds() const { return 0; }
  bool broken() const { return false; }
  void Tell(const std::string&) {}
  void SetTimeout(double) {}
  void SetPatient(bool) {}
  void Leave(const absl::Status&) {}
};
#endif

Gang::Gang() = default;
Gang::~Gang() = default;

absl::StatusOr<std::unique_ptr<Gang>> Gang::Join() {
#ifdef LEMO_MPI
  if (MpiWorld::RanksStarted() > 1) {
    std::unique_ptr<Gang> gang(new Gang());
    LEMO_ASSIGN_OR_RETURN(gang->mpi_, MpiWorld::Start());
    gang->world_ = &gang->mpi_->world();
    gang->node_ = &gang->mpi_->node();
    return gang;
  }
#endif
  return Alone();
}

std::unique_ptr<Gang> Gang::Alone() {
  std::unique_ptr<Gang> gang(new Gang());
  gang->own_world_ = MakeSingleCommunicator();
  gang->own_node_ = MakeSingleCommunicator();
  gang->world_ = gang->own_world_.get();
  gang->node_ = gang->own_node_.get();
  gang->tensor_ = MakeSingleCommunicator();
  gang->data_ = MakeSingleCommunicator();
  return gang;
}

absl::Status Gang::Arrange(lemo::v1::ParallelSpec* parallel, c10::Device device) {
  const int ranks = size();
  const int tensor = parallel->tensor() > 0 ? parallel->tensor() : 1;
  const auto fault = [ranks](const std::string& field, const std::string& reason) {
    return absl::InvalidArgumentError(absl::StrCat(
        field, ": ", reason, "; ", ranks, ranks == 1 ? " rank was" : " ranks were", " started"));
  };
  if (ranks % tensor != 0) {
    return fault("parallel.tensor", absl::StrCat("groups of ", tensor, " do not divide the ranks"));
  }
  if (parallel->data() > 0 && parallel->data() != ranks / tensor) {
    return fault("parallel.data", absl::StrCat(parallel->data(), " groups of ", tensor, " make ",
                                               int64_t{parallel->data()} * tensor, " ranks"));
  }
  parallel->set_tensor(tensor);
  parallel->set_data(ranks / tensor);
  if (mpi_) {
    mpi_->SetTimeout(parallel->timeout_seconds());
    tensor_ = world_->Split(rank() / tensor, rank());
    data_ = world_->Split(rank() % tensor, rank());
    if (!device.is_cpu()) {
      LEMO_ASSIGN_OR_RETURN(tensor_, MakeNcclCommunicator(std::move(tensor_), device));
      LEMO_ASSIGN_OR_RETURN(data_, MakeNcclCommunicator(std::move(data_), device));
    }
  }
  return absl::OkStatus();
}

std::vector<std::vector<double>> Gang::Everyones(const std::vector<double>& own) {
  const int64_t count = std::ssize(own);
  const at::Tensor all = at::empty({size(), count}, at::kDouble);
  world_
      ->AllGather(at::tensor(at::ArrayRef<double>(own), at::kDouble), all,
                  std::vector<int64_t>(size(), count))
      .Wait();
  std::vector<std::vector<double>> numbers;
  for (int r = 0; r < size(); ++r) {
    const double* first = all.const_data_ptr<double>() + r * count;
    numbers.emplace_back(first, first + count);
  }
  return numbers;
}

bool Gang::broken() const { return mpi_ && mpi_->broken(); }

double Gang::waited_seconds() const { return mpi_ ? mpi_->waited_seconds() : 0; }

int64_t Gang::sent_bytes() const {
  return world_->bytes() + node_->bytes() + tensor_->bytes() + data_->bytes();
}

Gang::Timed::Timed(Gang& gang) : gang_(gang) {
  if (gang_.mpi_) gang_.mpi_->SetPatient(false);
}

Gang::Timed::~Timed() {
  if (gang_.mpi_) gang_.mpi_->SetPatient(true);
}

void Gang::Tell(const std::string& activity) {
  if (mpi_) mpi_->Tell(activity);
}

void Gang::Leave(const absl::Status& status) {
  if (!mpi_) return;
  tensor_.reset();
  data_.reset();
  mpi_->Leave(status);
}

namespace {

// The leaves of a JSON value by dotted path.
void Flatten(const std::string& path, const nlohmann::json& value,
             std::map<std::string, std::string>* leaves) {
  if (!value.is_structured()) {
    (*leaves)[path] = value.dump();
    return;
  }
  for (const auto& [key, child] : value.items()) {
    const std::string name = value.is_array() ? absl::StrCat(path, "[", key, "]")
                             : path.empty()   ? key
                                              : absl::StrCat(path, ".", key);
    Flatten(name, child, leaves);
  }
}

std::map<std::string, std::string> Leaves(const std::string& facts) {
  std::map<std::string, std::string> leaves;
  Flatten("", nlohmann::json::parse(facts), &leaves);
  return leaves;
}

}  // namespace

absl::Status CompareFacts(Communicator& world, const std::string& facts) {
  const std::map<std::string, std::string> own = Leaves(facts);
  const std::map<std::string, std::string> first = Leaves(BroadcastText(world, facts, 0));
  std::vector<std::string> differences;
  const auto value = [](const std::map<std::string, std::string>& leaves,
                        const std::string& field) {
    const auto found = leaves.find(field);
    return found == leaves.end() ? "nothing" : found->second;
  };
  std::map<std::string, std::string> all = own;
  all.insert(first.begin(), first.end());
  for (const auto& [field, ignored] : all) {
    if (value(own, field) == value(first, field)) continue;
    differences.push_back(absl::StrCat(field, ": rank ", world.rank(), " has ", value(own, field),
                                       ", rank 0 has ", value(first, field)));
  }
  std::vector<std::string> everybodys;
  for (const std::string& text : AllGatherText(world, absl::StrJoin(differences, "\n"))) {
    if (!text.empty()) everybodys.push_back(text);
  }
  if (everybodys.empty()) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("the ranks do not run the same thing:\n", absl::StrJoin(everybodys, "\n")));
}

absl::Status Agree(Communicator& world, const absl::Status& status) {
  const std::vector<std::string> all = AllGatherText(world, StatusToText(status));
  for (int rank = 0; rank < world.size(); ++rank) {
    const std::string& text = all[static_cast<size_t>(rank)];
    if (text.empty()) continue;
    return rank == world.rank() ? status : StatusFromText(text, rank);
  }
  return absl::OkStatus();
}

}  // namespace lemo::train
