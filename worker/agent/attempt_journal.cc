#include "worker/agent/attempt_journal.h"

#include <vector>

#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "common/status_macros.h"
#include "nlohmann/json.hpp"
#include "worker/agent/gang_command.h"
#include "worker/agent/process_info.h"

namespace lemo::agent {
namespace {

constexpr char kRecordName[] = "attempt.json";

}  // namespace

absl::Status AttemptJournal::Write(const AttemptRecord& record) const {
  const nlohmann::ordered_json json = {{"job", record.id.job()},
                                       {"attempt", record.id.attempt()},
                                       {"ranks", record.ranks},
                                       {"first_rank", record.first_rank},
                                       {"gang_ranks", record.gang_ranks},
                                       {"leader", record.leader},
                                       {"start_ticks", record.start_ticks},
                                       {"boot_id", record.boot_id},
                                       {"start_unix_seconds", record.start_unix_seconds},
                                       {"run_seconds", record.run_seconds},
                                       {"succeeded", record.succeeded}};
  return WriteFileAtomic(directory_ / kRecordName, json.dump(1) + "\n");
}

absl::StatusOr<AttemptRecord> AttemptJournal::Read(const std::filesystem::path& job_directory) {
  const std::filesystem::path path = job_directory / kRecordName;
  LEMO_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, 1 << 20));
  const nlohmann::json json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  AttemptRecord record;
  try {
    record.id.set_job(json.at("job").get<std::string>());
    record.id.set_attempt(json.at("attempt").get<int>());
    record.ranks = json.value("ranks", 1);
    record.first_rank = json.value("first_rank", 0);
    record.gang_ranks = json.value("gang_ranks", record.ranks);
    record.leader = json.at("leader").get<pid_t>();
    record.start_ticks = json.at("start_ticks").get<uint64_t>();
    record.boot_id = json.at("boot_id").get<std::string>();
    record.start_unix_seconds = json.at("start_unix_seconds").get<double>();
    record.run_seconds = json.at("run_seconds").get<double>();
    record.succeeded = json.at("succeeded").get<bool>();
  } catch (const nlohmann::json::exception& error) {
    return absl::InternalError(absl::StrCat(path.string(), ": ", error.what()));
  }
  if (record.boot_id != BootId()) record.leader = 0;
  return record;
}

absl::Status AttemptJournal::WriteEnded(const lemo::v1::AttemptEnded& ended) const {
  return WriteFileAtomic(Numbered("ended-", ""), ended.SerializeAsString());
}

std::optional<lemo::v1::AttemptEnded> AttemptJournal::ReadEnded() const {
  const absl::StatusOr<std::string> bytes = ReadFile(Numbered("ended-", ""), 16 << 20);
  lemo::v1::AttemptEnded ended;
  if (!bytes.ok() || !ended.ParseFromString(*bytes)) return std::nullopt;
  return ended;
}

void AttemptJournal::Remove() const {
  std::error_code ignored;
  std::filesystem::remove_all(share(), ignored);
  std::filesystem::remove_all(predictor(), ignored);
  RemoveScratch(directory_);
  // However many ranks and nodes there were: `rank-R-N.log`, `rank-R-N.end`, `run-R.json`,
  // `gang-N.json` and what lies beside it.
  const std::string log_end = Numbered("-", ".log").filename().string();
  const std::string end_end = Numbered("-", ".end").filename().string();
  std::vector<std::filesystem::path> of_ranks;
  for (std::filesystem::directory_iterator entry(directory_, ignored), end;
       !ignored && entry != end; entry.increment(ignored)) {
    const std::string name = entry->path().filename().string();
    const bool of_rank =
        name.starts_with("rank-") && (name.ends_with(log_end) || name.ends_with(end_end));
    if (of_rank || (name.starts_with("run-") && name.ends_with(".json")) ||
        name.starts_with(gang().filename().string())) {
      of_ranks.push_back(entry->path());
    }
  }
  for (const auto& path : of_ranks) std::filesystem::remove(path, ignored);
  // The record last: until then a restarted agent takes the attempt up again, and hears anew that
  // it is forgotten.
  for (const auto& path :
       {spool(), mpirun_log(), spec(), Numbered("ended-", ""), directory_ / kRecordName}) {
    std::filesystem::remove(path, ignored);
  }
  std::filesystem::remove(directory_, ignored);  // when nothing else is in it
}

}  // namespace lemo::agent
