#include "coordinator/runtime/validator.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <map>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/time/clock.h"
#include "common/files.h"
#include "common/job_files.h"
#include "common/located_json.h"
#include "common/message_json.h"
#include "common/rates_file.h"
#include "common/status_macros.h"
#include "common/violations.h"
#include "coordinator/core/contract.h"
#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/io/zero_copy_stream_impl_lite.h"
#include "google/protobuf/util/delimited_message_util.h"
#include "google/protobuf/util/message_differencer.h"
#include "lemo/v1/run_event.pb.h"

extern char** environ;

namespace lemo::coordinator {
namespace {

namespace fs = std::filesystem;

// Where the child finds its events' descriptor.
constexpr int kEventsFd = 3;
// What a child may say; a run that is validated says one event.
constexpr size_t kEventsLimit = size_t{4} << 20;
// A plan has some dozens of offers, each of a few KiB.
constexpr int64_t kSaidLimit = int64_t{16} << 20;
constexpr int kUserFault = 2, kOutOfMemory = 3;
// Calls, agents and ranks on the same host go before checks.
constexpr int kNice = 10;
constexpr char kStopping[] = "the coordinator is stopping";

lemo::v1::Failure Fault(lemo::v1::Failure::Kind kind, std::string message) {
  lemo::v1::Failure failure;
  failure.set_kind(kind);
  failure.set_message(std::move(message));
  return failure;
}

// The run spec as the child is to read it, and what its local paths stand for.
struct LocalSpec {
  lemo::v1::RunSpec spec;
  std::vector<std::pair<std::string, std::string>> names;  // local path, name
};

// What the child has of another job's predictor: links, in `directory`.
absl::Status MakeLocalPredictor(const JobRecord& record, const fs::path& directory,
                                ArtifactStore* artifacts, LocalSpec* local) {
  lemo::v1::TokensSpec& tokens = *local->spec.mutable_tokens();
  std::map<std::string, std::string> files;
  for (const lemo::v1::InputFile& file : record.files) {
    if (!JobFileNamed(file.name())) continue;
    LEMO_ASSIGN_OR_RETURN(files[file.name()], artifacts->LocalPath(file.sha256()));
  }
  LEMO_RETURN_IF_ERROR(LinkPredictor(tokens.predictor(), files, directory));
  local->names.emplace_back(directory.string(), tokens.predictor());
  tokens.set_predictor(directory.string());
  return absl::OkStatus();
}

// Files of its own are made in `directory`.
absl::StatusOr<LocalSpec> MakeLocal(const JobRecord& record, bool plans, const fs::path& directory,
                                    ArtifactStore* artifacts) {
  LocalSpec local{record.job.spec().run(), {}};
  local.names.emplace_back(record.model_path, local.spec.model().path());
  local.spec.mutable_model()->set_path(record.model_path);
  local.spec.mutable_output()->set_dir((directory / "out").string());
  local.spec.set_device("cpu");
  for (auto* files :
       {local.spec.mutable_data()->mutable_train(), local.spec.mutable_data()->mutable_eval()}) {
    for (lemo::v1::DataFile& file : *files) {
      const auto found =
          std::find_if(record.files.begin(), record.files.end(),
                       [&file](const auto& input) { return input.name() == file.path(); });
      if (found == record.files.end()) {
        return absl::InternalError(absl::StrCat(file.path(), " was not looked up"));
      }
      LEMO_ASSIGN_OR_RETURN(const std::string path, artifacts->LocalPath(found->sha256()));
      local.names.emplace_back(path, file.path());
      file.set_path(path);
    }
  }
  const std::string& predictor = local.spec.tokens().predictor();
  if (IsJobName(predictor)) {
    LEMO_RETURN_IF_ERROR(MakeLocalPredictor(record, directory / "predictor", artifacts, &local));
  } else if (!plans && predictor.starts_with("/") && !fs::exists(predictor)) {
    // Workers may have what this host has not: they look at it.
    local.spec.mutable_tokens()->set_predictor("auto");
  }
  return local;
}

absl::Status ReadJson(const std::string& text, google::protobuf::Message* message) {
  JsonFault fault;
  const std::optional<LocatedJson> root = ParseLocatedJson(text, &fault);
  if (!root) return absl::InternalError("not JSON: " + fault.reason);
  Violations violations;
  MessageReader("", message->GetDescriptor(), &violations).ReadMessage(*root, "", message);
  return violations.ToStatus();
}

bool SameDevice(const lemo::v1::DeviceRates& a, const lemo::v1::DeviceRates& b) {
  return a.type() == b.type() && a.compute_type() == b.compute_type() &&
         a.threads() == b.threads() && std::max(1, a.ranks()) == std::max(1, b.ranks());
}

// The last error event of what the child wrote.
std::optional<lemo::v1::ErrorEvent> LastError(const std::string& bytes) {
  std::optional<lemo::v1::ErrorEvent> error;
  google::protobuf::io::ArrayInputStream stream(bytes.data(), static_cast<int>(bytes.size()));
  lemo::v1::RunEvent event;
  bool clean_end = false;
  while (google::protobuf::util::ParseDelimitedFromZeroCopyStream(&event, &stream, &clean_end)) {
    if (event.has_error()) error = event.error();
    event.Clear();
  }
  return error;
}

// Reads until the writer has closed its end; false when the time is over.
bool ReadAll(int fd, absl::Time deadline, std::string* bytes) {
  char buffer[1 << 16];
  for (;;) {
    const int64_t left = absl::ToInt64Milliseconds(deadline - absl::Now());
    if (left <= 0) return false;
    pollfd poll_fd{fd, POLLIN, 0};
    const int ready = ::poll(&poll_fd, 1, static_cast<int>(std::min<int64_t>(left, 60'000)));
    if (ready < 0 && errno != EINTR) return false;
    if (ready <= 0) continue;
    const ssize_t count = ::read(fd, buffer, sizeof(buffer));
    if (count == 0) return true;
    if (count < 0 && errno != EINTR) return false;
    if (count > 0 && bytes->size() < kEventsLimit)
      bytes->append(buffer, static_cast<size_t>(count));
  }
}

}  // namespace

Validator::Validator(ValidatorOptions options, ArtifactStore* artifacts, Done done)
    : options_(std::move(options)), artifacts_(artifacts), done_(std::move(done)) {
  std::error_code ignored;
  fs::remove_all(options_.scratch, ignored);
  for (int i = 0; i < options_.workers; ++i) threads_.emplace_back([this] { Work(); });
}

Validator::~Validator() { Shutdown(); }

void Validator::Shutdown() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    waiting_.clear();
    for (const auto& [key, pid] : running_) {
      if (pid > 0) ::kill(-pid, SIGKILL);
    }
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) {
    if (thread.joinable()) thread.join();
  }
}

void Validator::Start(const JobRecord& record) {
  {
    const std::lock_guard lock(mutex_);
    if (stopping_) return;
    waiting_.push_back({record});
  }
  changed_.notify_all();
}

void Validator::Stop(const std::string& job) {
  const std::lock_guard lock(mutex_);
  waiting_.erase(
      std::remove_if(waiting_.begin(), waiting_.end(),
                     [&job](const Waiting& waiting) { return waiting.record.job.name() == job; }),
      waiting_.end());
  // Its verdict is not wanted any more: Work looks for the entry.
  const auto found = running_.find(job);
  if (found == running_.end()) return;
  if (found->second > 0) ::kill(-found->second, SIGKILL);
  running_.erase(found);
}

Validator::Load Validator::CurrentLoad() {
  const std::lock_guard lock(mutex_);
  return {running_.size() - static_cast<size_t>(checks_), waiting_.size()};
}

std::optional<Validator::Waiting> Validator::Next() {
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    const auto first = std::min_element(
        waiting_.begin(), waiting_.end(),
        [](const Waiting& a, const Waiting& b) { return a.not_before < b.not_before; });
    const absl::Duration wait =
        first == waiting_.end() ? absl::Minutes(1) : first->not_before - absl::Now();
    if (wait > absl::ZeroDuration()) {
      changed_.wait_for(lock, absl::ToChronoMilliseconds(std::min(wait, absl::Minutes(1))) +
                                  std::chrono::milliseconds(1));
      continue;
    }
    Waiting next = std::move(*first);
    waiting_.erase(first);
    running_[next.record.job.name()] = 0;
    return next;
  }
  return std::nullopt;
}

void Validator::Work() {
  while (std::optional<Waiting> waiting = Next()) {
    const std::string job = waiting->record.job.name();
    const absl::Time begin = absl::Now();
    Finding finding = Examine(waiting->record, job);
    {
      const std::lock_guard lock(mutex_);
      if (stopping_) return;
      if (running_.erase(job) == 0) continue;
      // What took its whole time would do so again.
      if (finding.verdict && finding.verdict->kind() == lemo::v1::Failure::SYSTEM_ERROR &&
          waiting->tries < options_.retries && absl::Now() - begin < options_.timeout) {
        waiting->not_before = absl::Now() + options_.retry_pause * (1 << waiting->tries);
        ++waiting->tries;
        waiting_.push_back(*std::move(waiting));
        continue;
      }
    }
    done_(job, std::move(finding));
  }
}

Finding Validator::Check(const JobRecord& record) {
  Finding finding;
  finding.verdict = Attend([&](const std::string& key) {
    finding = Examine(record, key);
    return finding.verdict;
  });
  return finding;
}

Verdict Validator::Plan(const JobRecord& record, lemo::v1::PlanResult* plan) {
  return Attend([&](const std::string& key) {
    Verdict verdict = MakePlan(record, key, plan);
    if (!verdict) CountOffers(plan->offers().empty() ? "none" : "made");
    return verdict;
  });
}

Verdict Validator::Attend(const std::function<Verdict(const std::string& key)>& work) {
  std::string key;
  {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return stopping_ || checks_ < options_.workers; });
    if (stopping_) return Fault(lemo::v1::Failure::SYSTEM_ERROR, kStopping);
    ++checks_;
    key = absl::StrCat("check ", ++last_check_);  // no job's name
    running_[key] = 0;
  }
  Verdict verdict = work(key);
  {
    const std::lock_guard lock(mutex_);
    --checks_;
    running_.erase(key);
    if (stopping_) verdict = Fault(lemo::v1::Failure::SYSTEM_ERROR, kStopping);
  }
  changed_.notify_all();
  return verdict;
}

Finding Validator::Examine(const JobRecord& record, const std::string& key) {
  if (!record.job.spec().has_plan()) {
    Errand errand;
    return {RunChild(record, key, &errand), std::nullopt};
  }
  lemo::v1::PlanResult plan;
  if (Verdict verdict = MakePlan(record, key, &plan)) {
    const bool refused = std::any_of(
        verdict->violations().begin(), verdict->violations().end(),
        [](const lemo::v1::Violation& violation) { return violation.field() == "plan.offer"; });
    if (refused) {
      CountOffers("refused");
      verdict->set_message(absl::StrCat("offer ", record.job.spec().plan().offer(),
                                        " is not, or no more, an offer of this job"));
      verdict->set_advice(
          "Ask for offers again (`lemo plan`): the job, its data or model, or the coordinator's "
          "rates are not those that it was made for, or it is outside of the bounds.");
    }
    return {std::move(verdict), std::nullopt};
  }
  Acceptance acceptance = Accept(record.job.spec(), plan, absl::Now());
  CountOffers(acceptance.contract ? "accepted" : "none");
  if (acceptance.contract) return {std::nullopt, std::move(acceptance.contract)};
  return {std::move(acceptance.failure), std::nullopt};
}

Verdict Validator::MakePlan(const JobRecord& record, const std::string& key,
                            lemo::v1::PlanResult* plan) {
  const lemo::v1::PlanOptions devices =
      options_.devices ? options_.devices(record.job.spec().resources().device_type())
                       : lemo::v1::PlanOptions();
  lemo::v1::PlanOptions options;
  // Once more when another plan has meanwhile measured the device that this one measured too.
  for (int round = 0;; ++round) {
    {
      const std::lock_guard lock(rates_mutex_);
      LoadRates();
      options = devices;
      options.MergeFrom(rates_);
    }
    if (options_.history) {
      for (lemo::v1::RunTime& run : options_.history()) *options.add_history() = std::move(run);
    }
    *options.mutable_plan() = PlanQuestion(record.job.spec(), absl::Now());
    Errand errand{&options, ""};
    if (Verdict verdict = RunChild(record, key, &errand)) return verdict;
    plan->Clear();
    if (const absl::Status read = ReadJson(errand.said, plan); !read.ok()) {
      return Fault(lemo::v1::Failure::SYSTEM_ERROR,
                   "the plan is not understood: " + std::string(read.message()));
    }
    const auto has_rates = [plan](const lemo::v1::PlannedDevice& device) {
      return std::any_of(
          device.rates().begin(), device.rates().end(), [plan](const lemo::v1::DeviceRates& of) {
            return google::protobuf::util::MessageDifferencer::Equals(of, plan->rates());
          });
    };
    const bool is_workers =
        has_rates(devices.device()) ||
        std::any_of(devices.devices().begin(), devices.devices().end(), has_rates);
    if (is_workers || !KeepRates(plan->rates()) || round == 1) break;
  }
  if (options_.add_times) options_.add_times(record, plan);
  return std::nullopt;
}

void Validator::LoadRates() {
  if (options_.rates_file.empty()) return;
  std::error_code missing;
  const fs::file_time_type written = fs::last_write_time(options_.rates_file, missing);
  // A file that was never there leaves what is in memory; one that was removed takes it away.
  if (missing ? rates_written_ == fs::file_time_type() : written == rates_written_) return;
  rates_.Clear();
  rates_written_ = missing ? fs::file_time_type() : written;
  // What is damaged, or of another version, is measured anew.
  if (!ReadMessageFile(options_.rates_file, kRatesBytesMax, &rates_).ok()) rates_.Clear();
  rates_.clear_plan();
  rates_.clear_history();
}

std::optional<lemo::v1::DeviceRates> Validator::KeepRates(const lemo::v1::DeviceRates& rates) {
  const std::lock_guard lock(rates_mutex_);
  LoadRates();
  auto* list = rates_.mutable_rates();
  const auto known = std::find_if(list->begin(), list->end(),
                                  [&](const auto& other) { return SameDevice(other, rates); });
  if (known == list->end()) {
    *list->Add() = rates;
  } else if (google::protobuf::util::MessageDifferencer::Equals(*known, rates)) {
    return std::nullopt;
  } else if (known->has_calibration() && !rates.has_calibration()) {
    *known = rates;  // of another version of lemo-train, which this one does not use
  } else {
    return *known;
  }
  if (!options_.rates_file.empty()) {
    // Without the file they are measured again by the next coordinator; no plan fails for that.
    WriteFileAtomic(options_.rates_file, MessageToJson(rates_, {}).dump(1) + "\n").IgnoreError();
    std::error_code ignored;
    rates_written_ = fs::last_write_time(options_.rates_file, ignored);
    if (ignored) rates_written_ = {};
  }
  return std::nullopt;
}

void Validator::CountOffers(const char* outcome) const {
  if (options_.count_offers) options_.count_offers(outcome);
}

Verdict Validator::RunChild(const JobRecord& record, const std::string& key, Errand* errand) {
  static std::atomic<int64_t> last_number = 0;
  const auto system_error = [](const absl::Status& status) {
    return Fault(lemo::v1::Failure::SYSTEM_ERROR,
                 "the check could not run: " + std::string(status.message()));
  };
  const fs::path directory = fs::path(options_.scratch) / absl::StrCat(++last_number);
  if (const absl::Status made = MakeDirectories(directory); !made.ok()) return system_error(made);
  const absl::Cleanup remove = [&directory] {
    std::error_code ignored;
    fs::remove_all(directory, ignored);
  };
  absl::StatusOr<LocalSpec> local =
      MakeLocal(record, errand->options != nullptr, directory, artifacts_);
  if (!local.ok()) return system_error(local.status());
  if (errand->options != nullptr && local->spec.checkpoint().every_steps() == 0) {
    // A job may be told to checkpoint at any time, to be paused or moved: its bytes are to have
    // room for it.
    local->spec.mutable_checkpoint()->set_every_steps(1);
  }
  const std::string spec_file = (directory / "run.json").string();
  const absl::Status written = WriteFileAtomic(spec_file, MessageToJson(local->spec, {}).dump(1));
  if (!written.ok()) return system_error(written);

  const std::string options_file = (directory / "plan.json").string();
  const std::string said_file = (directory / "offers.json").string();
  if (errand->options != nullptr) {
    const absl::Status options =
        WriteFileAtomic(options_file, MessageToJson(*errand->options, {}).dump(1));
    if (!options.ok()) return system_error(options);
  }

  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return system_error(ErrnoStatus(errno, "pipe", directory));
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  const int null = ::open("/dev/null", O_RDWR | O_CLOEXEC);
  for (const int fd : {0, 1, 2}) posix_spawn_file_actions_adddup2(&actions, null, fd);
  if (errand->options != nullptr) {
    posix_spawn_file_actions_addopen(&actions, 1, said_file.c_str(), O_WRONLY | O_CREAT, 0600);
  }
  // dup2 onto itself would keep close-on-exec.
  const int writer = ::fcntl(ends[1], F_DUPFD_CLOEXEC, kEventsFd + 1);
  ::close(ends[1]);
  posix_spawn_file_actions_adddup2(&actions, writer, kEventsFd);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  // Signals that this process blocks for its own sake are the child's to take.
  sigset_t none;
  sigemptyset(&none);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK);
  std::vector<std::string> words = {options_.train_program, spec_file};
  if (errand->options == nullptr) {
    words.push_back("--validate");
  } else {
    for (const char* word : {"--plan", "--json", "--plan-options"}) words.push_back(word);
    words.push_back(options_file);
  }
  for (const std::string& word : {std::string("--events"), absl::StrCat("fd:", kEventsFd)}) {
    words.push_back(word);
  }
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  pid_t pid = 0;
  const int error = ::posix_spawn(&pid, options_.train_program.c_str(), &actions, &attributes,
                                  arguments.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  ::close(writer);
  ::close(null);
  const absl::Cleanup close_reader = [&ends] { ::close(ends[0]); };
  if (error != 0) return system_error(ErrnoStatus(error, "start", options_.train_program));
  // Before it makes threads, which inherit it.
  ::setpriority(PRIO_PROCESS, static_cast<id_t>(pid), kNice);
  {
    const std::lock_guard lock(mutex_);
    const auto found = running_.find(key);
    if (stopping_ || found == running_.end()) {
      ::kill(-pid, SIGKILL);
    } else {
      found->second = pid;
    }
  }

  std::string bytes;
  const bool in_time = ReadAll(ends[0], absl::Now() + options_.timeout, &bytes);
  if (!in_time) ::kill(-pid, SIGKILL);
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  if (!in_time) {
    return Fault(
        lemo::v1::Failure::SYSTEM_ERROR,
        absl::StrCat("the check took longer than ", absl::FormatDuration(options_.timeout)));
  }
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
    if (errand->options == nullptr) return std::nullopt;
    absl::StatusOr<std::string> said = ReadFile(said_file, kSaidLimit);
    if (!said.ok()) return system_error(said.status());
    errand->said = *std::move(said);
    return std::nullopt;
  }
  const std::optional<lemo::v1::ErrorEvent> said = LastError(bytes);
  if (!WIFEXITED(status) || !said) {
    return Fault(lemo::v1::Failure::SYSTEM_ERROR,
                 WIFSIGNALED(status)
                     ? absl::StrCat("the check was ended by signal ", WTERMSIG(status))
                     : "the check ended without an answer");
  }
  const int code = WEXITSTATUS(status);
  lemo::v1::Failure failure = Fault(code == kOutOfMemory ? lemo::v1::Failure::OUT_OF_MEMORY
                                    : code == kUserFault && !SaysDiskIsFull(said->message())
                                        ? lemo::v1::Failure::USER_ERROR
                                        : lemo::v1::Failure::SYSTEM_ERROR,
                                    said->message());
  failure.set_advice(said->advice());
  *failure.mutable_violations() = said->violations();
  // Names that the submitter knows in place of paths that only this host has.
  failure.set_message(absl::StrReplaceAll(failure.message(), local->names));
  for (lemo::v1::Violation& violation : *failure.mutable_violations()) {
    violation.set_file(absl::StrReplaceAll(violation.file(), local->names));
    violation.set_reason(absl::StrReplaceAll(violation.reason(), local->names));
    const bool of_plan = absl::StartsWith(violation.field(), "plan.");
    if (!violation.field().empty() && !of_plan) violation.set_field("run." + violation.field());
  }
  return failure;
}

}  // namespace lemo::coordinator
