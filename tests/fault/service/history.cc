#include "tests/fault/service/history.h"

#include "absl/strings/str_cat.h"

namespace lemo::coordinator {
namespace {

using lemo::v1::Job;
using lemo::v1::JobEvent;

// Reads the events in order.
class Reader {
 public:
  explicit Reader(const std::map<int, double>& losses) : losses_(losses) {}

  void Read(const JobEvent& event) {
    ++sequence_;
    Expect(event.sequence() == sequence_, event, "its place is ", sequence_);
    Expect(event.attempt() >= attempt_, event, "its attempt goes back from ", attempt_);
    Expect(!Ended(), event, "the job has ended before");
    if (event.attempt() > attempt_) {
      attempt_ = event.attempt();
      said_ = step_ = 0;
    }
    if (event.has_state()) {
      Expect(event.state().from() == state_, event, "the state was ", Job::State_Name(state_));
      state_ = event.state().to();
    } else {
      ReadRun(event);
    }
  }

  std::vector<std::string> End() {
    if (state_ != Job::SUCCEEDED) {
      faults_.push_back(absl::StrCat("ends as ", Job::State_Name(state_)));
    } else if (losses_.empty() || step_ != losses_.rbegin()->first) {
      faults_.push_back(absl::StrCat("succeeded at step ", step_));
    }
    return std::move(faults_);
  }

 private:
  bool Ended() const {
    return state_ == Job::SUCCEEDED || state_ == Job::FAILED || state_ == Job::CANCELLED;
  }

  void ReadRun(const JobEvent& event) {
    ++said_;
    Expect(state_ == Job::RUNNING, event, "the job is ", Job::State_Name(state_));
    Expect(event.run().sequence() == said_, event, "of its attempt it is number ", said_);
    if (event.run().checkpoint().reason() == "resumed") {
      Expect(step_ == 0, event, "resumed after step ", step_);
      step_ = event.run().checkpoint().step();
    }
    if (!event.run().has_step()) return;
    ++step_;
    Expect(event.run().step().step() == step_, event, "the next step is ", step_);
    const auto loss = losses_.find(event.run().step().step());
    Expect(loss != losses_.end() && loss->second == event.run().step().loss(), event,
           "the undisturbed loss is ", loss == losses_.end() ? 0 : loss->second);
  }

  template <typename... Why>
  void Expect(bool good, const JobEvent& event, const Why&... why) {
    if (!good) faults_.push_back(absl::StrCat(why..., ": ", event.ShortDebugString()));
  }

  const std::map<int, double>& losses_;
  std::vector<std::string> faults_;
  int64_t sequence_ = 0;
  int attempt_ = 0;
  int64_t said_ = 0;  // by the ranks of the attempt
  int step_ = 0;      // of the attempt, or that it resumed
  Job::State state_ = Job::STATE_UNSPECIFIED;
};

}  // namespace

std::vector<std::string> FaultsOf(const std::vector<JobEvent>& events,
                                  const std::map<int, double>& losses) {
  Reader reader(losses);
  for (const JobEvent& event : events) reader.Read(event);
  return reader.End();
}

}  // namespace lemo::coordinator
