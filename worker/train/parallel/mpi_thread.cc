#include "worker/train/parallel/mpi_thread.h"

#include <sched.h>
#include <sys/prctl.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "worker/train/parallel/communicator.h"
#include "worker/train/parallel/status_text.h"

namespace lemo::train {
namespace {

constexpr std::chrono::seconds kStartTimeout{300};
// Answers to "what are you doing" come within this.
constexpr std::chrono::seconds kAnswerTime{2};
// While the main thread computes, operations are moved on this often, in bursts. While it waits,
// all the time at first; then with short rests, since what is waited for may want this very core.
constexpr std::chrono::microseconds kPause{100}, kEager{500}, kRest{20};
constexpr int kBurst = 16;
// How long the thread sleeps when nothing is to be moved on, and how often it looks for messages.
constexpr std::chrono::milliseconds kIdle{20}, kLook{2};

double Seconds(std::chrono::steady_clock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

// Sums and maxima of bfloat16, which MPI does not know, in fp32.
template <typename Combine>
void CombineHalves(void* in, void* inout, int* count, Combine combine) {
  const auto* a = static_cast<const at::BFloat16*>(in);
  auto* b = static_cast<at::BFloat16*>(inout);
  for (int i = 0; i < *count; ++i)
    b[i] = combine(static_cast<float>(a[i]), static_cast<float>(b[i]));
}
void SumHalves(void* in, void* inout, int* count, MPI_Datatype*) {
  CombineHalves(in, inout, count, [](float a, float b) { return a + b; });
}
void MaxHalves(void* in, void* inout, int* count, MPI_Datatype*) {
  CombineHalves(in, inout, count, [](float a, float b) { return std::max(a, b); });
}

}  // namespace

MpiThread::MpiThread() : timeout_(kStartTimeout), thread_([this] { Run(); }) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return up_; });
}

MpiThread::~MpiThread() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  wake_.notify_one();
  if (thread_.joinable()) thread_.join();
}

void MpiThread::SetTimeout(double seconds) {
  const std::lock_guard lock(mutex_);
  timeout_ = std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

void MpiThread::SetPatient(bool patient) {
  const std::lock_guard lock(mutex_);
  patient_ = patient;
}

void MpiThread::Tell(const std::string& activity) {
  const std::lock_guard lock(mutex_);
  activity_ = activity;
  since_ = Clock::now();
}

std::shared_ptr<MpiOperation> MpiThread::Begin(
    std::string name, std::vector<at::Tensor> tensors,
    std::function<void(std::vector<MPI_Request>*)> start) {
  auto operation = std::make_shared<MpiOperation>();
  operation->name = std::move(name);
  operation->start = std::move(start);
  operation->tensors = std::move(tensors);
  {
    const std::lock_guard lock(mutex_);
    begun_.push_back(operation);
  }
  wake_.notify_one();
  return operation;
}

void MpiThread::Wait(MpiOperation& operation) {
  std::unique_lock lock(mutex_);
  waits_for_ = operation.name;
  waits_since_ = Clock::now();
  const auto over = [&] { return operation.done || failure_.has_value(); };
  std::optional<absl::Status> late;
  bool all_waited = false;
  while (!changed_.wait_for(lock, timeout_, over)) {
    const Late found = WhoIsLate(lock, operation);
    if (over()) break;
    // The last to come may have come while the others were asked: all wait, for what is under way.
    const bool goes_on = patient_ && (found.works || (found.all_wait && !all_waited));
    if (!goes_on) {
      late = found.status;
      break;
    }
    all_waited = found.all_wait;
  }
  waited_ += Clock::now() - waits_since_;
  waits_for_.clear();
  if (late) throw GangError(*late);
  if (!operation.done) throw GangError(*failure_);
}

double MpiThread::waited_seconds() {
  const std::lock_guard lock(mutex_);
  return Seconds(waited_);
}

bool MpiThread::heard_failure() {
  const std::lock_guard lock(mutex_);
  return failure_.has_value();
}

void MpiThread::TellFailure(const absl::Status& status) {
  const std::lock_guard lock(mutex_);
  told_ = StatusToText(status);
}

bool MpiThread::MeetAll(std::chrono::seconds patience) {
  const auto operation =
      Begin("the end of the run", {}, [this](std::vector<MPI_Request>* requests) {
        MPI_Ibarrier(side_, &requests->emplace_back());
      });
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, patience, [&] { return operation->done; });
}

void MpiThread::SetEnd(End end, int code) {
  const std::lock_guard lock(mutex_);
  end_ = end;
  abort_code_ = code;
}

void MpiThread::Run() {
  // Else a sleep of 100 us takes 150.
  ::prctl(PR_SET_TIMERSLACK, 1000, 0, 0, 0);
  int provided = 0;
  MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
  MPI_Comm_size(MPI_COMM_WORLD, &size_);
  MPI_Comm_dup(MPI_COMM_WORLD, &side_);
  MPI_Op_create(SumHalves, /*commute=*/1, &sum_halves_);
  MPI_Op_create(MaxHalves, /*commute=*/1, &max_halves_);
  {
    const std::lock_guard lock(mutex_);
    up_ = true;
  }
  changed_.notify_all();
  while (Turn()) {
  }
  End end;
  int code;
  {
    const std::lock_guard lock(mutex_);
    end = end_;
    code = abort_code_;
  }
  if (end == End::kFinalize) MPI_Finalize();
  if (end == End::kAbort) MPI_Abort(MPI_COMM_WORLD, code);
}

// One round; false at the end.
bool MpiThread::Turn() {
  std::vector<std::shared_ptr<MpiOperation>> begun;
  bool main_waits = false;
  Clock::time_point waits_since;
  {
    std::unique_lock lock(mutex_);
    const auto called = [this] {
      return !begun_.empty() || ending_ || !told_.empty() || !asked_.empty();
    };
    if (active_.empty() && !called()) wake_.wait_for(lock, kIdle, called);
    if (ending_ && (begun_.empty() || end_ != End::kFinalize)) return false;
    begun.assign(begun_.begin(), begun_.end());
    begun_.clear();
    main_waits = !waits_for_.empty();
    waits_since = waits_since_;
  }
  for (const auto& operation : begun) {
    operation->start(&operation->requests);
    active_.push_back(operation);
  }
  bool ended = false;
  for (int i = 0; i < kBurst && !ended; ++i) ended = MoveOn();
  if (const auto now = Clock::now(); now - looked_ > kLook || active_.empty()) {
    looked_ = now;
    Correspond();
  }
  if (active_.empty() || ended) return true;
  if (!main_waits) {
    std::this_thread::sleep_for(kPause);
  } else if (Clock::now() - waits_since < kEager) {
    ::sched_yield();
  } else {
    std::this_thread::sleep_for(kRest);
  }
  return true;
}

// True when an operation has ended.
bool MpiThread::MoveOn() {
  bool ended = false;
  for (auto at = active_.begin(); at != active_.end();) {
    MpiOperation& operation = **at;
    int done = 0;
    MPI_Testall(static_cast<int>(operation.requests.size()), operation.requests.data(), &done,
                MPI_STATUSES_IGNORE);
    if (done == 0) {
      ++at;
      continue;
    }
    {
      const std::lock_guard lock(mutex_);
      operation.done = true;
    }
    // Outside of the lock: the caller may be the last to hold a tensor, or we.
    operation.tensors.clear();
    at = active_.erase(at);
    ended = true;
    changed_.notify_all();
  }
  return ended;
}

void MpiThread::SendText(int to, Tag tag, std::string text) {
  Letter& letter = sent_.emplace_back();
  letter.text = std::move(text);
  MPI_Isend(letter.text.data(), static_cast<int>(letter.text.size()), MPI_CHAR, to, tag, side_,
            &letter.request);
}

// Questions, answers and failures, both ways.
void MpiThread::Correspond() {
  std::string told;
  std::set<int> asked;
  {
    const std::lock_guard lock(mutex_);
    told = std::exchange(told_, "");
    asked = std::exchange(asked_, {});
  }
  for (int other = 0; other < size_ && !told.empty(); ++other) {
    if (other != rank_) SendText(other, kFailure, told);
  }
  for (const int other : asked) SendText(other, kQuestion, "");
  for (;;) {
    int here = 0;
    MPI_Status status;
    MPI_Iprobe(MPI_ANY_SOURCE, MPI_ANY_TAG, side_, &here, &status);
    if (here == 0) break;
    int length = 0;
    MPI_Get_count(&status, MPI_CHAR, &length);
    std::string text(static_cast<size_t>(length), '\0');
    MPI_Recv(text.data(), length, MPI_CHAR, status.MPI_SOURCE, status.MPI_TAG, side_,
             MPI_STATUS_IGNORE);
    Take(status.MPI_SOURCE, static_cast<Tag>(status.MPI_TAG), text);
  }
  for (auto at = sent_.begin(); at != sent_.end();) {
    int done = 0;
    MPI_Test(&at->request, &done, MPI_STATUS_IGNORE);
    at = done != 0 ? sent_.erase(at) : std::next(at);
  }
}

void MpiThread::Take(int from, Tag tag, const std::string& text) {
  if (tag == kQuestion) {
    SendText(from, kAnswer, Doing());
    return;
  }
  const std::lock_guard lock(mutex_);
  if (tag == kAnswer) {
    answers_[from] = text;
  } else if (!failure_) {
    failure_ = StatusFromText(text, from);
  }
  changed_.notify_all();
}

// "w": waits; "c": computes. Then where, in words.
std::string MpiThread::Doing() {
  const std::lock_guard lock(mutex_);
  const auto now = Clock::now();
  const bool waits = !waits_for_.empty();
  return absl::StrCat(
      waits ? "w" : "c", activity_.empty() ? "starting" : activity_,
      waits ? absl::StrCat(", in ", waits_for_) : "",
      absl::StrFormat(" since %.1f s", Seconds(now - (waits ? waits_since_ : since_))));
}

MpiThread::Late MpiThread::WhoIsLate(std::unique_lock<std::mutex>& lock,
                                     const MpiOperation& operation) {
  answers_.clear();
  for (int other = 0; other < size_; ++other) {
    if (other != rank_) asked_.insert(other);
  }
  wake_.notify_one();
  changed_.wait_for(lock, kAnswerTime, [&] {
    return answers_.size() + 1 == static_cast<size_t>(size_) || failure_.has_value();
  });
  std::vector<std::string> late, waiting;
  bool silent = false;
  for (int other = 0; other < size_; ++other) {
    if (other == rank_) continue;
    const auto answer = answers_.find(other);
    if (answer == answers_.end()) {
      silent = true;
      late.push_back(absl::StrCat("rank ", other, ", which does not answer"));
    } else {
      (answer->second[0] == 'w' ? waiting : late)
          .push_back(absl::StrCat("rank ", other, " (", answer->second.substr(1), ")"));
    }
  }
  const std::string who = late.empty()
                              ? absl::StrCat("all ranks wait: ", absl::StrJoin(waiting, ", "))
                              : absl::StrCat("late: ", absl::StrJoin(late, ", "));
  return {absl::DeadlineExceededError(absl::StrFormat("rank %d waited %.0f s at %s in %s; %s",
                                                      rank_, Seconds(timeout_), activity_,
                                                      operation.name, who)),
          !silent && !late.empty(), late.empty()};
}

}  // namespace lemo::train
