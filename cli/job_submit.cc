// lemo job submit.
#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cli/commands.h"
#include "cli/errors.h"
#include "cli/job_text.h"
#include "cli/local_inputs.h"
#include "cli/uuid.h"
#include "cli/watch.h"
#include "cli/wishes.h"
#include "common/status_macros.h"

namespace lemo::cli {
namespace {

struct SubmitFlags {
  std::string spec;
  std::string name;
  std::vector<std::string> assignments;
  WishFlags wishes;
  bool watch = false;
  bool validate_only = false;
};

absl::StatusOr<int> Submit(Context& context, const SubmitFlags& flags) {
  LEMO_ASSIGN_OR_RETURN(Connection* const connection, context.connection());
  lemo::v1::SubmitJobRequest request;
  LEMO_ASSIGN_OR_RETURN(*request.mutable_spec(),
                        LoadJobSpec(context, flags.spec, flags.assignments, flags.wishes));
  if (!flags.name.empty()) request.mutable_spec()->set_display_name(flags.name);
  LEMO_RETURN_IF_ERROR(SendLocalInputs(*connection, request.mutable_spec(), context.err()));
  request.set_validate_only(flags.validate_only);
  // The same id on every try: an answer that got lost does not make a second job.
  request.set_request_id(RandomUuid());
  lemo::v1::Job job;
  LEMO_RETURN_IF_ERROR(connection->CallRetrying(
      flags.validate_only ? "check the job" : "submit the job",
      [&](grpc::ClientContext* rpc) {
        // Data is read in full before a check is answered.
        if (request.validate_only()) {
          rpc->set_deadline(
              absl::ToChronoTime(absl::Now() + std::max(connection->timeout(), absl::Hours(1))));
        }
        return connection->jobs().SubmitJob(rpc, request, &job);
      },
      [&] { context.err() << "the coordinator does not answer; trying again\n"; }));
  if (flags.validate_only) {
    if (context.is_table()) {
      context.out() << "valid\n";
      if (job.has_contract()) context.out() << ContractText(job.contract());
    } else {
      context.Print(job);
    }
    return kExitOk;
  }
  if (flags.watch) {
    context.err() << "submitted " << job.name() << "\n";
    return WatchJob(context, job.name());
  }
  if (context.is_table()) {
    context.out() << job.name() << "\n";
    context.err() << StateName(job.state()) << "; follow it with: lemo job watch " << job.name()
                  << "\n";
  } else {
    context.Print(job);
  }
  return kExitOk;
}

}  // namespace

void AddSubmitCommand(CLI::App& job, Context& context) {
  auto flags = std::make_shared<SubmitFlags>();
  CLI::App* submit =
      AddCommand(job, context, "submit",
                 "Submit a job spec (or a run spec of lemo-train), YAML or JSON; local files and "
                 "models that it names go along",
                 flags, &Submit);
  submit->add_option("SPEC", flags->spec, "The spec file; - for standard input")
      ->required()
      ->type_name("");
  submit->add_option("--name", flags->name, "What lists show")->type_name("NAME");
  submit
      ->add_option("--set", flags->assignments,
                   "Replace one field of the spec; a.b=null clears it. May be repeated")
      ->type_name("a.b=c")
      ->allow_extra_args(false);
  AddWishFlags(submit, &flags->wishes);
  submit->add_flag("--watch", flags->watch, "Follow the job to its end");
  submit->add_flag("--validate-only", flags->validate_only,
                   "Check everything, data included, and submit nothing");
}

}  // namespace lemo::cli
