#include "bench/control_plane/filled_store.h"

#include <iterator>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "common/files.h"
#include "common/status_macros.h"
#include "coordinator/core/core.h"
#include "coordinator/core/timestamp.h"
#include "coordinator/store/store.h"

namespace lemo::bench {
namespace {

using coordinator::AgentSaid;
using coordinator::Core;
using coordinator::Effect;
using coordinator::Store;

constexpr absl::Duration kBetweenJobs = absl::Milliseconds(50);
constexpr size_t kEffectsATime = 4000;
constexpr int kSteps = 3;
constexpr int64_t kSession = 1;

// A core whose persists go to the store, many steps in one transaction.
class Past {
 public:
  Past(Store* store, absl::Time begin, int64_t last_number)
      : store_(store), core_({}, &scheduler_), now_(begin), number_(last_number) {}

  absl::Status Step(const coordinator::Event& event) {
    Core::Outcome outcome = core_.Step(event, now_);
    LEMO_RETURN_IF_ERROR(outcome.status);
    std::move(outcome.effects.begin(), outcome.effects.end(), std::back_inserter(effects_));
    return effects_.size() < kEffectsATime ? absl::OkStatus() : Commit();
  }

  absl::Status Commit() { return store_->Apply(std::exchange(effects_, {})); }

  // The new job's name.
  absl::StatusOr<std::string> Submit() {
    now_ += kBetweenJobs;
    coordinator::JobRecord record;
    record.number = ++number_;
    record.job.set_name(absl::StrFormat("jobs/bench%011d", number_));
    *record.job.mutable_create_time() = coordinator::ToTimestamp(now_);
    lemo::v1::JobSpec& spec = *record.job.mutable_spec();
    spec.set_display_name(absl::StrCat("run ", number_));
    (*spec.mutable_labels())["team"] = number_ % 2 == 0 ? "even" : "odd";
    lemo::v1::RunSpec& run = *spec.mutable_run();
    run.mutable_model()->set_path("models/bench");
    run.mutable_data()->add_train()->set_path("files/bench");
    run.mutable_data()->set_max_length(2048);
    lemo::v1::LoraSpec& lora = *run.mutable_tuner()->mutable_lora();
    lora.set_rank(8);
    for (const char* target : {"q_proj", "k_proj", "v_proj", "o_proj"}) lora.add_targets(target);
    run.mutable_train()->set_steps(kSteps);
    lemo::v1::InputFile& file = record.files.emplace_back();
    file.set_name("files/bench");
    file.set_bytes(1000);
    file.set_sha256(std::string(64, 'a'));
    record.model_path = kFakeModel;
    record.request_id = absl::StrCat("bench-", number_);
    record.request_hash = std::string(64, 'b');
    const std::string name = record.job.name();
    LEMO_RETURN_IF_ERROR(Step(coordinator::Submitted{std::move(record)}));
    return name;
  }

  absl::Status Connect() {
    coordinator::AgentConnected event;
    event.session = kSession;
    event.hello.set_worker("workers/past");
    lemo::v1::Device& device = *event.hello.add_devices();
    device.set_kind(lemo::v1::Device::CPU);
    device.set_memory_bytes(int64_t{1} << 40);
    return Step(event);
  }

  absl::Status Heartbeat() {
    lemo::v1::AgentMessage message;
    message.mutable_heartbeat()->set_number(1);
    return Step(AgentSaid{kSession, std::move(message)});
  }

  // From placement to success.
  absl::Status Live(const std::string& job) {
    lemo::v1::AttemptId id;
    id.set_job(job);
    id.set_attempt(1);
    lemo::v1::AgentMessage said;
    lemo::v1::AttemptEvents& events = *said.mutable_events();
    *events.mutable_id() = id;
    events.set_first_sequence(1);
    for (int step = 1; step <= kSteps; ++step) {
      lemo::v1::RunEvent& event = *events.add_events();
      event.set_sequence(step);
      event.mutable_step()->set_step(step);
      event.mutable_step()->set_steps(kSteps);
      event.mutable_step()->set_loss(2.5);
    }
    lemo::v1::RunEvent& result = *events.add_events();
    result.set_sequence(kSteps + 1);
    result.mutable_result()->set_train_loss(2.5);
    result.mutable_result()->set_steps(kSteps);
    LEMO_RETURN_IF_ERROR(Step(AgentSaid{kSession, std::move(said)}));
    lemo::v1::AgentMessage last;
    lemo::v1::AttemptEnded& ended = *last.mutable_ended();
    *ended.mutable_id() = id;
    ended.set_outcome(lemo::v1::AttemptEnded::SUCCEEDED);
    ended.set_last_sequence(kSteps + 1);
    for (const char* path : {"adapter/adapter_model.safetensors", "adapter/adapter_config.json",
                             "report.html", "report.json"}) {
      lemo::v1::Artifact& artifact = *ended.add_artifacts();
      artifact.set_path(path);
      artifact.set_bytes(100'000);
      artifact.set_sha256(std::string(64, 'c'));
    }
    return Step(AgentSaid{kSession, std::move(last)});
  }

 private:
  Store* const store_;
  const scheduler::FifoScheduler scheduler_;
  Core core_;
  absl::Time now_;
  int64_t number_;
  std::vector<Effect> effects_;
};

absl::StatusOr<std::unique_ptr<Store>> Open(const std::string& directory) {
  LEMO_RETURN_IF_ERROR(MakeDirectories(directory));
  return coordinator::OpenSqliteStore(directory + "/lemo.db");
}

}  // namespace

absl::Status AddEndedJobs(const std::string& directory, int64_t count) {
  LEMO_ASSIGN_OR_RETURN(const std::unique_ptr<Store> store, Open(directory));
  LEMO_ASSIGN_OR_RETURN(const int64_t last, store->LastNumber());
  Past past(store.get(), absl::Now() - (count + 100) * kBetweenJobs, last);
  LEMO_RETURN_IF_ERROR(past.Connect());
  for (int64_t i = 0; i < count; ++i) {
    if (i % 20 == 0) LEMO_RETURN_IF_ERROR(past.Heartbeat());
    LEMO_ASSIGN_OR_RETURN(const std::string job, past.Submit());
    coordinator::Validated validated{job, {}, 0};
    if (i % 100 == 99) {
      validated.failure.emplace().set_kind(lemo::v1::Failure::USER_ERROR);
      validated.failure->set_message("row 7 has no text");
    }
    const bool runs = !validated.failure;
    LEMO_RETURN_IF_ERROR(past.Step(validated));
    if (runs) LEMO_RETURN_IF_ERROR(past.Live(job));
  }
  return past.Commit();
}

absl::Status AddQueuedJobs(const std::string& directory, int count) {
  LEMO_ASSIGN_OR_RETURN(const std::unique_ptr<Store> store, Open(directory));
  LEMO_ASSIGN_OR_RETURN(const int64_t last, store->LastNumber());
  Past past(store.get(), absl::Now() - count * kBetweenJobs, last);
  for (int i = 0; i < count; ++i) {
    LEMO_ASSIGN_OR_RETURN(const std::string job, past.Submit());
    LEMO_RETURN_IF_ERROR(past.Step(coordinator::Validated{job, {}, 0}));
  }
  return past.Commit();
}

}  // namespace lemo::bench
