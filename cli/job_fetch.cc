// lemo job fetch, lemo job report.
#include <algorithm>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "cli/commands.h"
#include "cli/download.h"
#include "cli/errors.h"
#include "cli/format.h"
#include "cli/job_text.h"
#include "common/status_macros.h"

namespace lemo::cli {
namespace {

namespace fs = std::filesystem;

constexpr char kReport[] = "report.html";

struct FetchFlags {
  std::string job;
  std::string out;
  bool replace = false;
};

absl::StatusOr<lemo::v1::Job> GetJob(const Connection& connection, const std::string& name) {
  lemo::v1::GetJobRequest request;
  request.set_name(name);
  lemo::v1::Job job;
  LEMO_RETURN_IF_ERROR(connection.Call("get " + name, [&](grpc::ClientContext* rpc) {
    return connection.jobs().GetJob(rpc, request, &job);
  }));
  return job;
}

fs::path OutDirectory(const FetchFlags& flags, const lemo::v1::Job& job) {
  return flags.out.empty() ? fs::path(job.name().substr(job.name().rfind('/') + 1))
                           : fs::path(flags.out);
}

// Brings `artifacts` below `directory`. Every path is looked at before the first byte comes.
absl::StatusOr<std::vector<fs::path>> FetchAll(Context& context, const Connection& connection,
                                               const std::string& job,
                                               const std::vector<lemo::v1::Artifact>& artifacts,
                                               const fs::path& directory, bool replace) {
  std::vector<fs::path> targets;
  for (const lemo::v1::Artifact& artifact : artifacts) {
    LEMO_ASSIGN_OR_RETURN(fs::path target, PathBelow(directory, artifact.path()));
    if (std::find(targets.begin(), targets.end(), target) != targets.end()) {
      return absl::DataLossError(
          absl::StrCat("the service lists ", Printable(artifact.path()), " twice"));
    }
    targets.push_back(std::move(target));
  }
  CatchInterrupts();
  for (size_t i = 0; i < artifacts.size(); ++i) {
    lemo::v1::DownloadArtifactRequest request;
    request.set_name(job);
    request.set_path(artifacts[i].path());
    const Download download{
        .name = artifacts[i].path(),
        .bytes = artifacts[i].bytes(),
        .sha256 = artifacts[i].sha256(),
        .open = [&](int64_t offset, grpc::ClientContext* rpc, grpc::CompletionQueue* queue) {
          request.set_offset(offset);
          return connection.jobs().PrepareAsyncDownloadArtifact(rpc, request, queue);
        }};
    LEMO_RETURN_IF_ERROR(
        Fetch(connection, download, {.target = targets[i], .replace = replace}, context.err()));
  }
  return targets;
}

absl::StatusOr<int> FetchJob(Context& context, const FetchFlags& flags) {
  LEMO_ASSIGN_OR_RETURN(const std::string name, ResourceName("jobs/", flags.job));
  LEMO_ASSIGN_OR_RETURN(Connection* const connection, context.connection());
  LEMO_ASSIGN_OR_RETURN(const lemo::v1::Job job, GetJob(*connection, name));
  if (job.state() != lemo::v1::Job::SUCCEEDED) {
    return absl::FailedPreconditionError(absl::StrCat(
        name, " is ", StateName(job.state()), "; results come with SUCCEEDED",
        IsFinal(job.state()) ? absl::StrCat(". Why: lemo job get ", name)
                             : absl::StrCat(". Wait for it with: lemo job watch ", name)));
  }
  if (job.artifacts().empty()) {
    return absl::NotFoundError(absl::StrCat(name, " succeeded and left no files"));
  }
  const fs::path directory = OutDirectory(flags, job);
  LEMO_ASSIGN_OR_RETURN(
      const std::vector<fs::path> targets,
      FetchAll(context, *connection, name, {job.artifacts().begin(), job.artifacts().end()},
               directory, flags.replace));
  if (!context.is_table()) {
    nlohmann::ordered_json files = nlohmann::ordered_json::array();
    for (int i = 0; i < job.artifacts_size(); ++i) {
      nlohmann::ordered_json file = ToJson(job.artifacts(i));
      file["file"] = targets[i].string();
      files.push_back(std::move(file));
    }
    PrintJson({{"job", name}, {"files", std::move(files)}}, context.flags.output, context.out());
    return kExitOk;
  }
  Table table({"file", "bytes"});
  for (int i = 0; i < job.artifacts_size(); ++i) {
    table.Add({targets[i].string(), HumanCount(job.artifacts(i).bytes())});
  }
  context.out() << table.ToString();
  return kExitOk;
}

absl::StatusOr<int> Report(Context& context, const FetchFlags& flags) {
  LEMO_ASSIGN_OR_RETURN(const std::string name, ResourceName("jobs/", flags.job));
  LEMO_ASSIGN_OR_RETURN(Connection* const connection, context.connection());
  LEMO_ASSIGN_OR_RETURN(const lemo::v1::Job job, GetJob(*connection, name));
  const auto report = std::find_if(
      job.artifacts().begin(), job.artifacts().end(), [](const lemo::v1::Artifact& artifact) {
        return artifact.path() == kReport ||
               absl::EndsWith(artifact.path(), absl::StrCat("/", kReport));
      });
  std::string file;
  if (report != job.artifacts().end()) {
    LEMO_ASSIGN_OR_RETURN(
        const std::vector<fs::path> targets,
        FetchAll(context, *connection, name, {*report}, OutDirectory(flags, job), flags.replace));
    file = fs::absolute(targets[0]).string();
  }
  if (!context.is_table()) {
    nlohmann::ordered_json out = {{"job", name}, {"state", StateName(job.state())}};
    if (job.has_result()) out["result"] = ToJson(job.result());
    if (!file.empty()) out["report"] = file;
    PrintJson(out, context.flags.output, context.out());
    return kExitOk;
  }
  context.out() << JobText(job);
  if (!file.empty()) {
    context.out() << "\nreport  " << file << "\n";
  } else {
    context.err() << "there is no report yet: it comes with SUCCEEDED\n";
  }
  return kExitOk;
}

}  // namespace

void AddFetchCommands(CLI::App& job, Context& context) {
  auto add = [&](const char* name, const char* description,
                 absl::StatusOr<int> (*action)(Context&, const FetchFlags&)) {
    auto flags = std::make_shared<FetchFlags>();
    CLI::App* command = AddCommand(job, context, name, description, flags, action);
    command->add_option("JOB", flags->job, "Name of the job")->required()->type_name("");
    command->add_option("--out", flags->out, "Where to put it [a directory of the job's id]")
        ->type_name("DIR");
    command->add_flag("--replace", flags->replace,
                      "Also where files of other contents stand in the way");
  };
  add("fetch", "Bring a job's result here, verified; goes on with what an earlier try left",
      &FetchJob);
  add("report", "Print a summary of a job and bring its report here", &Report);
}

}  // namespace lemo::cli
