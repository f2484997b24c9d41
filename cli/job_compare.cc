// lemo job compare: what each of several runs cost and gave, beside the first of them.
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/commands.h"
#include "cli/errors.h"
#include "cli/format.h"
#include "cli/job_text.h"
#include "common/status_macros.h"

namespace lemo::cli {
namespace {

using lemo::v1::Job;

struct CompareFlags {
  std::vector<std::string> jobs;
};

// "0.52 s (0.48x)"; the ratio is to the first job's.
std::string Against(const std::string& text, double value, double first) {
  if (!(first > 0) || !std::isfinite(value)) return text;
  return absl::StrFormat("%s (%.2fx)", text, value / first);
}

double StepSeconds(const Job& job) {
  return job.result().steps() > 0 ? job.result().seconds() / job.result().steps() : 0;
}

std::string PerplexityCell(const Job& job) {
  const lemo::v1::ResultEvent& result = job.result();
  if (!std::isfinite(result.perplexity())) return "";
  return absl::StrCat(Fixed(result.perplexity_before(), 2), " -> ", Fixed(result.perplexity(), 2));
}

std::string KeptCell(const Job& job) {
  const double kept = job.progress().kept();
  return absl::StrFormat("%.0f %%", 100 * (kept > 0 ? kept : 1));
}

absl::StatusOr<int> Compare(Context& context, const CompareFlags& flags) {
  LEMO_ASSIGN_OR_RETURN(Connection* const connection, context.connection());
  lemo::v1::ListJobsResponse jobs;
  for (const std::string& text : flags.jobs) {
    LEMO_ASSIGN_OR_RETURN(const std::string name, ResourceName("jobs/", text));
    lemo::v1::GetJobRequest request;
    request.set_name(name);
    LEMO_RETURN_IF_ERROR(connection->Call("get " + name, [&](grpc::ClientContext* rpc) {
      return connection->jobs().GetJob(rpc, request, jobs.add_jobs());
    }));
    const Job& job = jobs.jobs(jobs.jobs_size() - 1);
    if (job.state() != Job::SUCCEEDED) {
      return absl::FailedPreconditionError(
          absl::StrCat(name, " is ", StateName(job.state()), "; only results can be compared"));
    }
  }
  if (!context.is_table()) {
    context.Print(jobs);
    return kExitOk;
  }
  const Job& first = jobs.jobs(0);
  Table table({"job", "perplexity", "a step", "peak", "saved activations", "rows kept"});
  for (const Job& job : jobs.jobs()) {
    const lemo::v1::PeakBytes& peak = job.result().peak_bytes();
    const lemo::v1::PeakBytes& base = first.result().peak_bytes();
    const auto bytes = [](int64_t value, int64_t other) {
      return Against(HumanBytes(value), static_cast<double>(value), static_cast<double>(other));
    };
    const std::string& name = job.spec().display_name();
    table.Add({name.empty() ? job.name() : name, PerplexityCell(job),
               Against(Fixed(StepSeconds(job), 2) + " s", StepSeconds(job), StepSeconds(first)),
               bytes(peak.total(), base.total()),
               bytes(peak.saved_activations(), base.saved_activations()), KeptCell(job)});
  }
  context.out() << table.ToString();
  return kExitOk;
}

}  // namespace

void AddCompareCommand(CLI::App& job, Context& context) {
  auto flags = std::make_shared<CompareFlags>();
  CLI::App* command =
      AddCommand(job, context, "compare",
                 "Results beside one another, with ratios to the first job's", flags, &Compare);
  command->add_option("JOB", flags->jobs, "Names of jobs that succeeded")
      ->required()
      ->type_name("");
}

}  // namespace lemo::cli
