// Collectives on inputs whose results are exact, on 1, 2 and 4 ranks (communicator.h): over MPI,
// and over NCCL where every rank has a CUDA device.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <thread>

#include "absl/strings/str_cat.h"
#include "tests/support/test_gang.h"
#include "worker/train/loop/device.h"
#include "worker/train/parallel/nccl_communicator.h"

namespace lemo::train {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

Communicator& World() { return TestGang().world(); }
int Rank() { return World().rank(); }
int Size() { return World().size(); }

constexpr at::ScalarType kTypes[] = {at::kDouble, at::kFloat, at::kBFloat16,
                                     at::kLong,   at::kInt,   at::kByte};

// Small whole numbers, which every type adds exactly; another tensor on every rank.
at::Tensor Numbers(int rank, int64_t count, at::TensorOptions options) {
  return at::arange(count, at::kLong).mul(7).add(rank).remainder(11).to(options);
}

at::Tensor SumOfNumbers(int64_t count, at::TensorOptions options) {
  at::Tensor sum = at::zeros({count}, at::kLong);
  for (int r = 0; r < Size(); ++r) sum += Numbers(r, count, at::kLong);
  return sum.to(options);
}

// Parts of other sizes, one of them empty.
std::vector<int64_t> UnequalCounts() {
  std::vector<int64_t> counts;
  for (int r = 0; r < Size(); ++r) counts.push_back(r == 1 ? 0 : 1000 + 37 * r);
  return counts;
}
int64_t Total(const std::vector<int64_t>& counts) {
  return std::accumulate(counts.begin(), counts.end(), int64_t{0});
}
int64_t First(const std::vector<int64_t>& counts, int rank) {
  return std::accumulate(counts.begin(), counts.begin() + rank, int64_t{0});
}

enum class Backend { kMpi, kNccl };

class Collectives : public testing::TestWithParam<Backend> {
 protected:
  void SetUp() override {
    if (GetParam() == Backend::kMpi) return;
    const absl::StatusOr<Compute> compute =
        ChooseCompute("cuda", "bfloat16", TestGang().node().rank());
    // Ranks without a device keep the others from waiting for them.
    const absl::Status all = Agree(World(), compute.status());
    if (!all.ok()) GTEST_SKIP() << all;
    device_ = compute->device;
    absl::StatusOr<std::unique_ptr<Communicator>> made =
        MakeNcclCommunicator(World().Split(0, Rank()), device_);
    ASSERT_TRUE(made.ok()) << made.status();
    nccl_ = *std::move(made);
  }

  Communicator& group() { return nccl_ ? *nccl_ : World(); }
  at::TensorOptions On(at::ScalarType type) const {
    return at::TensorOptions().dtype(type).device(device_);
  }

 private:
  at::Device device_ = at::kCPU;
  std::unique_ptr<Communicator> nccl_;
};

INSTANTIATE_TEST_SUITE_P(Backends, Collectives, testing::Values(Backend::kMpi, Backend::kNccl),
                         [](const auto& test) {
                           return test.param == Backend::kMpi ? "Mpi" : "Nccl";
                         });

TEST_P(Collectives, AllReduceAddsEveryType) {
  for (const at::ScalarType type : kTypes) {
    for (const int64_t count : {0, 1, 1000, 300001}) {
      const at::Tensor tensor = Numbers(Rank(), count, On(type));
      group().AllReduce(tensor, ReduceOp::kSum).Wait();
      EXPECT_TRUE(tensor.equal(SumOfNumbers(count, On(type)))) << type << " " << count;
    }
  }
}

TEST_P(Collectives, AllReduceTakesTheLargest) {
  for (const at::ScalarType type : kTypes) {
    const at::Tensor tensor = Numbers(Rank(), 1000, On(type));
    at::Tensor largest = Numbers(0, 1000, at::kLong);
    for (int r = 1; r < Size(); ++r) largest = largest.maximum(Numbers(r, 1000, at::kLong));
    group().AllReduce(tensor, ReduceOp::kMax).Wait();
    EXPECT_TRUE(tensor.equal(largest.to(On(type)))) << type;
  }
}

TEST_P(Collectives, AllReduceGivesEveryRankTheSameBits) {
  const at::Tensor tensor = at::arange(100003, On(at::kFloat)).add(Rank()).mul(1.0 / 3).sin();
  group().AllReduce(tensor, ReduceOp::kSum).Wait();
  const at::Tensor first = tensor.clone();
  group().Broadcast(first, 0).Wait();
  EXPECT_TRUE(tensor.equal(first));
}

TEST_P(Collectives, ManyAtOnceAreWaitedForInAnyOrder) {
  std::vector<at::Tensor> tensors;
  std::vector<Pending> pending;
  for (int i = 0; i < 20; ++i) {
    tensors.push_back(Numbers(Rank() + i, 5000, On(at::kFloat)));
    pending.push_back(group().AllReduce(tensors.back(), ReduceOp::kSum));
  }
  for (int i = 19; i >= 0; --i) pending[i].Wait();
  for (int i = 0; i < 20; ++i) {
    at::Tensor sum = at::zeros({5000}, On(at::kFloat));
    for (int r = 0; r < Size(); ++r) sum += Numbers(r + i, 5000, On(at::kFloat));
    EXPECT_TRUE(tensors[i].equal(sum)) << i;
  }
}

TEST_P(Collectives, ReduceScatterGivesEachRankItsPartOfTheSum) {
  for (const at::ScalarType type : kTypes) {
    const std::vector<int64_t> counts = UnequalCounts();
    const at::Tensor output = at::empty({counts[Rank()]}, On(type));
    group().ReduceScatter(Numbers(Rank(), Total(counts), On(type)), output, counts).Wait();
    EXPECT_TRUE(output.equal(
        SumOfNumbers(Total(counts), On(type)).narrow(0, First(counts, Rank()), counts[Rank()])))
        << type;
  }
}

TEST_P(Collectives, AllGatherPutsUnequalPartsTogether) {
  for (const bool in_place : {false, true}) {
    const std::vector<int64_t> counts = UnequalCounts();
    const at::Tensor whole = at::full({Total(counts)}, -1, On(at::kFloat));
    at::Tensor part = whole.narrow(0, First(counts, Rank()), counts[Rank()]);
    if (!in_place) part = part.clone();
    part.copy_(Numbers(Rank(), counts[Rank()], On(at::kFloat)));
    group().AllGather(part, whole, counts).Wait();
    for (int r = 0; r < Size(); ++r) {
      EXPECT_TRUE(
          whole.narrow(0, First(counts, r), counts[r]).equal(Numbers(r, counts[r], On(at::kFloat))))
          << in_place << " " << r;
    }
  }
}

TEST_P(Collectives, BroadcastsFromEveryRank) {
  for (int root = 0; root < Size(); ++root) {
    const at::Tensor tensor = Numbers(Rank(), 1000, On(at::kBFloat16));
    group().Broadcast(tensor, root).Wait();
    EXPECT_TRUE(tensor.equal(Numbers(root, 1000, On(at::kBFloat16))));
  }
}

TEST_P(Collectives, SendsAroundTheRing) {
  if (Size() == 1 && GetParam() == Backend::kNccl) GTEST_SKIP() << "NCCL sends to others alone";
  const int next = (Rank() + 1) % Size(), former = (Rank() + Size() - 1) % Size();
  const at::Tensor received = at::empty({70000}, On(at::kFloat));
  const auto send = [&] { return group().Send(Numbers(Rank(), 70000, On(at::kFloat)), next); };
  Pending sent, got;
  if (Rank() % 2 == 0) sent = send();
  got = group().Receive(received, former);
  if (Rank() % 2 != 0) sent = send();
  got.Wait();
  sent.Wait();
  EXPECT_TRUE(received.equal(Numbers(former, 70000, On(at::kFloat))));
}

TEST(Split, MakesGroupsInTheOrderOfTheKeys) {
  const std::unique_ptr<Communicator> group = World().Split(Rank() % 2, -Rank());
  EXPECT_EQ(group->size(), (Size() + 1 - Rank() % 2) / 2);
  const at::Tensor ranks = at::empty({group->size()}, at::kLong);
  group->AllGather(at::full({1}, Rank(), at::kLong), ranks, std::vector<int64_t>(group->size(), 1))
      .Wait();
  for (int i = 0; i + 1 < group->size(); ++i) {
    EXPECT_EQ(ranks[i].item<int64_t>(), ranks[i + 1].item<int64_t>() + 2);
  }
  EXPECT_EQ(ranks[group->rank()].item<int64_t>(), Rank());
}

TEST(Node, HoldsAllRanksOfThisMachine) { EXPECT_EQ(TestGang().node().size(), Size()); }

TEST(Text, OfAnyLengthFromAllAndFromOne) {
  const std::string own(static_cast<size_t>(Rank()) * 10, static_cast<char>('a' + Rank()));
  const std::vector<std::string> all = AllGatherText(World(), own);
  ASSERT_EQ(all.size(), static_cast<size_t>(Size()));
  for (int r = 0; r < Size(); ++r) {
    EXPECT_EQ(all[r], std::string(static_cast<size_t>(r) * 10, static_cast<char>('a' + r)));
  }
  EXPECT_EQ(BroadcastText(World(), own, Size() - 1), all.back());
}

TEST(CompareFacts, NamesTheFieldThatDiffers) {
  EXPECT_TRUE(CompareFacts(World(), R"({"a": {"b": [1, 2]}, "c": "x"})").ok());
  if (Size() == 1) return;
  const bool odd = Rank() == 1;
  const absl::Status status =
      CompareFacts(World(), odd ? R"({"a": {"b": [1, 3]}, "d": true})" : R"({"a": {"b": [1, 2]}})");
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("a.b[1]: rank 1 has 3, rank 0 has 2"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("d: rank 1 has true, rank 0 has nothing"));
}

TEST(Agree, TheFirstFailureIsEverybodys) {
  EXPECT_TRUE(Agree(World(), absl::OkStatus()).ok());
  const absl::Status status =
      Agree(World(), Rank() == Size() - 1 ? absl::NotFoundError("no such file") : absl::OkStatus());
  EXPECT_TRUE(absl::IsNotFound(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("no such file"));
}

// Files by which ranks tell rank 0 what they cannot tell by a collective. mpirun is the parent of
// all.
std::filesystem::path Sign(int rank) {
  return std::filesystem::path(testing::TempDir()) /
         absl::StrCat("lemo_communicator_", ::getppid(), "_", rank);
}

// Until all others have given the sign.
void AwaitSigns() {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  for (int rank = 1; rank < Size();) {
    if (std::filesystem::remove(Sign(rank))) {
      ++rank;
      continue;
    }
    ASSERT_LT(std::chrono::steady_clock::now(), deadline) << "rank " << rank;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

// Rank 0 works longer than the timeout before it comes. Who waits for what one does alone is
// patient with a rank that answers; in what all do at once that rank is late.
TEST(Wait, IsPatientWithARankThatWorksButInTimedWork) {
  if (Size() == 1) return;
  lemo::v1::ParallelSpec parallel;
  parallel.set_timeout_seconds(0.2);
  ASSERT_TRUE(TestGang().Arrange(&parallel, c10::kCPU).ok());
  const auto sum = [] {
    const at::Tensor one = at::ones({1}, at::kLong);
    World().AllReduce(one, ReduceOp::kSum).Wait();
    return one.item<int64_t>();
  };
  TestGang().Tell("its own work");
  if (Rank() == 0) std::this_thread::sleep_for(std::chrono::seconds(1));
  EXPECT_EQ(sum(), Size());
  std::string late;
  try {
    const Gang::Timed timed(TestGang());
    if (Rank() == 0) AwaitSigns();
    sum();
  } catch (const GangError& error) {
    EXPECT_TRUE(absl::IsDeadlineExceeded(error.status()));
    late = error.what();
  }
  if (Rank() != 0) std::ofstream(Sign(Rank())).put('x');
  if (Rank() == 0) {
    EXPECT_EQ(late, "");
  } else {
    EXPECT_THAT(late, HasSubstr("late: rank 0 (its own work since "));
  }
  parallel.set_timeout_seconds(60);
  parallel.set_data(0);
  ASSERT_TRUE(TestGang().Arrange(&parallel, c10::kCPU).ok());
}

TEST(Arrange, GroupsAreNeighboursAndStrides) {
  if (Size() % 2 != 0) return;
  lemo::v1::ParallelSpec parallel;
  parallel.set_timeout_seconds(60);
  parallel.set_tensor(2);
  ASSERT_TRUE(TestGang().Arrange(&parallel, c10::kCPU).ok());
  EXPECT_EQ(parallel.data(), Size() / 2);
  EXPECT_EQ(TestGang().tensor().rank(), Rank() % 2);
  EXPECT_EQ(TestGang().data().rank(), Rank() / 2);
  EXPECT_EQ(TestGang().data().size(), Size() / 2);
  parallel.set_data(Size());
  const absl::Status refused = TestGang().Arrange(&parallel, c10::kCPU);
  EXPECT_TRUE(absl::IsInvalidArgument(refused)) << refused;
  EXPECT_THAT(std::string(refused.message()), HasSubstr("parallel.data"));
}

}  // namespace
}  // namespace lemo::train
