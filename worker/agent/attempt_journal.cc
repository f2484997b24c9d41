#include "worker/agent/attempt_journal.h"

#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "common/status_macros.h"
#include "nlohmann/json.hpp"
#include "worker/agent/process_info.h"

namespace lemo::agent {
namespace {

constexpr char kRecordName[] = "attempt.json";

}  // namespace

absl::Status AttemptJournal::Write(const AttemptRecord& record) const {
  const nlohmann::ordered_json json = {{"job", record.id.job()},
                                       {"attempt", record.id.attempt()},
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
  // The record last: until then a restarted agent takes the attempt up again, and hears anew that
  // it is forgotten.
  for (const auto& path :
       {spool(), log(0), spec(), Numbered("ended-", ""), directory_ / kRecordName}) {
    std::filesystem::remove(path, ignored);
  }
  std::filesystem::remove(directory_, ignored);  // when nothing else is in it
}

}  // namespace lemo::agent
