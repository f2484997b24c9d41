#include "tests/fuzz/worker_stream/said.h"

#include <limits>

#include "absl/strings/str_cat.h"

namespace lemo::coordinator::fuzz {

using lemo::v1::AgentMessage;
using lemo::v1::AttemptEnded;
using lemo::v1::AttemptId;
using lemo::v1::RunEvent;

namespace {

constexpr int kJobs = 6, kWorkers = 3;

AttemptId MakeId(const Core& core, const std::string& worker, Bytes& bytes) {
  AttemptId id;
  id.set_job(JobName(bytes));
  if (bytes.Below(8) != 0) {
    for (const lemo::v1::Worker& known : core.Workers()) {
      if (known.name() == worker && !known.jobs().empty()) {
        id.set_job(known.jobs(bytes.Below(known.jobs_size())));
      }
    }
  }
  const JobRecord* record = core.Find(id.job());
  id.set_attempt(static_cast<int32_t>(bytes.Near(record == nullptr ? 1 : record->job.attempt())));
  return id;
}

int64_t TakenEvents(const Core& core, const AttemptId& id) {
  const JobRecord* record = core.Find(id.job());
  return record == nullptr ? 0 : record->attempt_sequence;
}

RunEvent MakeEvent(Bytes& bytes) {
  RunEvent event;
  switch (bytes.Below(9)) {
    case 0:
      event.mutable_phase()->set_name("train");
      break;
    case 1:
      event.mutable_eval()->set_loss(std::numeric_limits<double>::quiet_NaN());
      break;
    case 2:
      event.mutable_checkpoint()->set_step(static_cast<int32_t>(bytes.Near(3)));
      event.mutable_checkpoint()->set_bytes(bytes.Near(0));
      break;
    case 3:
      event.mutable_result()->set_interrupted(bytes.Below(3) == 0);
      break;
    case 4:
      event.mutable_error()->set_message(bytes.Take(5));
      break;
    case 5:
      event.mutable_result()->set_train_loss(1);
      break;
    case 6:
      break;  // an event of a newer version
    default:
      event.mutable_step()->set_step(static_cast<int32_t>(bytes.Near(1)));
      event.mutable_step()->set_loss(1.0 / bytes.Below(3));
  }
  return event;
}

void MakeEvents(const Core& core, const std::string& worker, Bytes& bytes,
                lemo::v1::AttemptEvents* events) {
  *events->mutable_id() = MakeId(core, worker, bytes);
  events->set_first_sequence(bytes.Near(TakenEvents(core, events->id()) + 1));
  for (int count = bytes.Below(5); count > 0; --count) *events->add_events() = MakeEvent(bytes);
}

void MakeEnded(const Core& core, const std::string& worker, Bytes& bytes, AttemptEnded* ended) {
  *ended->mutable_id() = MakeId(core, worker, bytes);
  ended->set_outcome(static_cast<AttemptEnded::Outcome>(bytes.Below(6)));  // some are not known
  ended->set_last_sequence(bytes.Near(TakenEvents(core, ended->id())));
  if (bytes.Below(2) == 0) {
    ended->mutable_failure()->set_kind(static_cast<lemo::v1::Failure::Kind>(bytes.Below(6)));
    ended->mutable_failure()->set_message(bytes.Take(3));
  }
  for (int count = bytes.Below(3); count > 0; --count) ended->add_artifacts()->set_path("a");
  ended->set_run_seconds(bytes.Below(4) == 0 ? std::numeric_limits<double>::quiet_NaN()
                                             : static_cast<double>(bytes.Near(10)));
}

void MakeCheckpoint(const Core& core, const std::string& worker, Bytes& bytes,
                    lemo::v1::AttemptCheckpoint* checkpoint) {
  *checkpoint->mutable_id() = MakeId(core, worker, bytes);
  checkpoint->mutable_checkpoint()->set_step(static_cast<int32_t>(bytes.Near(2)));
  for (int count = bytes.Below(3); count > 0; --count) {
    lemo::v1::Artifact& file = *checkpoint->mutable_checkpoint()->add_files();
    file.set_path("a");
    file.set_bytes(bytes.Near(1));
    file.set_sha256(std::string(64, static_cast<char>('a' + bytes.Below(3))));
  }
}

}  // namespace

std::string Bytes::Take(size_t count) {
  std::string taken;
  for (; count > 0 && !empty(); --count) taken += static_cast<char>(Next());
  return taken;
}

int64_t Bytes::Near(int64_t truth) {
  switch (Below(32)) {
    case 0:
      return truth + 1;
    case 1:
      return truth - 1;
    case 2:
      return 0;
    case 3:
      return std::numeric_limits<int64_t>::max() - Below(3);
    case 4:
      return std::numeric_limits<int64_t>::min() + Below(3);
    default:
      return truth;
  }
}

std::string JobName(Bytes& bytes) { return absl::StrCat("jobs/", bytes.Below(kJobs)); }
std::string WorkerName(Bytes& bytes) { return absl::StrCat("workers/", bytes.Below(kWorkers)); }

lemo::v1::Hello MakeHello(const Core& core, Bytes& bytes) {
  lemo::v1::Hello hello;
  hello.set_worker(bytes.Below(32) == 0 ? bytes.Take(4) : WorkerName(bytes));
  for (int count = bytes.Below(6); count > 0; --count) {
    lemo::v1::Device& device = *hello.add_devices();
    device.set_index(bytes.Below(16) == 0 ? -1 : count);
    const int kind = bytes.Below(8);  // mostly CPU, some that nobody knows
    device.set_kind(static_cast<lemo::v1::Device::Kind>(kind < 4 ? kind : 1));
    device.set_memory_bytes(bytes.Near(1000));
  }
  // Mostly what the coordinator believes too.
  for (const lemo::v1::Worker& worker : core.Workers()) {
    if (worker.name() != hello.worker()) continue;
    for (const std::string& job : worker.jobs()) {
      if (bytes.Below(4) == 0) continue;
      hello.add_attempts()->mutable_id()->set_job(job);
      hello.mutable_attempts()->rbegin()->mutable_id()->set_attempt(core.Find(job)->job.attempt());
    }
  }
  for (int count = bytes.Below(16) - 12; count > 0; --count) {
    *hello.add_attempts()->mutable_id() = MakeId(core, hello.worker(), bytes);
  }
  // Most workers take parts of gangs.
  if (hello.devices_size() % 4 != 3) hello.mutable_endpoint()->set_address("h:1");
  return hello;
}

AgentMessage MakeMessage(const Core& core, const std::string& worker, Bytes& bytes) {
  AgentMessage message;
  switch (bytes.Below(16)) {
    case 0:
      // Any bytes that are a message at all. A run event's own number is the agent's business.
      (void)message.ParseFromString(bytes.Take(static_cast<size_t>(bytes.Below(64))));
      break;
    case 1:
      *message.mutable_hello() = MakeHello(core, bytes);
      break;
    case 2:
    case 3:
      message.mutable_heartbeat()->set_number(bytes.Near(1));
      break;
    case 4:
    case 5:
      *message.mutable_started()->mutable_id() = MakeId(core, worker, bytes);
      break;
    case 6:
    case 7:
    case 8:
      MakeEnded(core, worker, bytes, message.mutable_ended());
      break;
    case 9: {
      lemo::v1::AttemptLog& log = *message.mutable_log();
      *log.mutable_id() = MakeId(core, worker, bytes);
      log.mutable_chunk()->set_offset(bytes.Near(0));
      log.mutable_chunk()->set_rank(static_cast<int32_t>(bytes.Near(0)));
      log.mutable_chunk()->set_attempt(static_cast<int32_t>(bytes.Near(1)));
      log.mutable_chunk()->set_data(bytes.Take(3));
      break;
    }
    case 10:
      message.mutable_drain();
      break;
    case 11:
      MakeCheckpoint(core, worker, bytes, message.mutable_checkpoint());
      break;
    default:
      MakeEvents(core, worker, bytes, message.mutable_events());
  }
  // What the judge of the store compares events by. The coordinator numbers them by their place.
  int64_t sequence = message.events().first_sequence();
  if (message.has_events()) {
    for (RunEvent& event : *message.mutable_events()->mutable_events()) {
      event.set_sequence(sequence);
      if (sequence < std::numeric_limits<int64_t>::max()) ++sequence;
    }
  }
  return message;
}

}  // namespace lemo::coordinator::fuzz
