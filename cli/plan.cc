// lemo plan.
#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cli/commands.h"
#include "cli/errors.h"
#include "cli/format.h"
#include "cli/local_inputs.h"
#include "cli/plan_text.h"
#include "cli/wishes.h"
#include "common/files.h"
#include "common/status_macros.h"

namespace lemo::cli {
namespace {

struct PlanFlags {
  std::string spec;
  std::vector<std::string> assignments;
  WishFlags wishes;
  bool explain = false;
  std::string plot;
};

absl::StatusOr<int> Plan(Context& context, const PlanFlags& flags) {
  LEMO_ASSIGN_OR_RETURN(Connection* const connection, context.connection());
  lemo::v1::PlanJobRequest request;
  LEMO_ASSIGN_OR_RETURN(*request.mutable_spec(),
                        LoadJobSpec(context, flags.spec, flags.assignments, flags.wishes));
  LEMO_RETURN_IF_ERROR(SendLocalInputs(*connection, request.mutable_spec(), context.err()));
  lemo::v1::PlanJobResponse response;
  LEMO_RETURN_IF_ERROR(connection->CallRetrying(
      "plan the job",
      [&](grpc::ClientContext* rpc) {
        // Data is read in full before offers are answered.
        rpc->set_deadline(
            absl::ToChronoTime(absl::Now() + std::max(connection->timeout(), absl::Hours(1))));
        return connection->jobs().PlanJob(rpc, request, &response);
      },
      [&] { context.err() << "the coordinator does not answer; trying again\n"; }));
  const lemo::v1::PlanResult& plan = response.plan();
  if (!flags.plot.empty()) {
    LEMO_RETURN_IF_ERROR(WriteFileAtomic(flags.plot, PlanPlot(plan)));
    context.err() << "wrote " << Printable(flags.plot) << "\n";
  }
  // What cannot be had is a fault of the request, as it is for a job.
  const int code = plan.offers().empty() ? kExitUserFault : kExitOk;
  if (!context.is_table()) {
    context.Print(response);
    return code;
  }
  context.out() << PlanText(plan, absl::Now());
  if (flags.explain) {
    for (const lemo::v1::Offer& offer : plan.offers().empty() ? plan.nearest() : plan.offers()) {
      if (plan.preferred().empty() || offer.id() == plan.preferred()) {
        context.out() << ExplainText(offer, plan);
      }
    }
  }
  if (!plan.offers().empty()) {
    context.err() << "take one: lemo job submit " << Printable(flags.spec)
                  << " --offer ID; * is what --prefer takes. Starts are as things are until "
                  << Time(response.expire_time()) << "\n";
  }
  return code;
}

}  // namespace

void AddPlanCommand(CLI::App& app, Context& context) {
  auto flags = std::make_shared<PlanFlags>();
  CLI::App* plan =
      AddCommand(app, context, "plan",
                 "Show what a job could be run as: memory, time and rows kept", flags, &Plan);
  plan->add_option("SPEC", flags->spec, "The spec file; - for standard input")
      ->required()
      ->type_name("");
  plan->add_option("--set", flags->assignments,
                   "Replace one field of the spec; a.b=null clears it. May be repeated")
      ->type_name("a.b=c")
      ->allow_extra_args(false);
  AddWishFlags(plan, &flags->wishes);
  plan->add_flag("--explain", flags->explain,
                 "Show how the figures of the preferred offer come about, and what it sets");
  plan->add_option("--plot", flags->plot, "Also draw the offers, as SVG")->type_name("FILE");
}

}  // namespace lemo::cli
