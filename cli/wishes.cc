#include "cli/wishes.h"

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "cli/format.h"
#include "cli/local_inputs.h"
#include "cli/spec_file.h"
#include "common/status_macros.h"
#include "common/violations.h"

namespace lemo::cli {

void AddWishFlags(CLI::App* command, WishFlags* flags) {
  command
      ->add_option("--offer", flags->offer,
                   "The offer of this id (of `lemo plan`; 8 digits are enough)")
      ->type_name("ID");
  command
      ->add_option("--prefer", flags->prefer, "The fastest offer, the smallest or the most exact")
      ->check(CLI::IsMember({"fastest", "smallest", "most_exact"}).description(""))
      ->type_name("fastest|smallest|most_exact");
  command
      ->add_option("--max-memory", flags->max_memory_bytes,
                   "Memory of a rank at most: 900MiB, 8GiB")
      ->type_name("BYTES")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/false))
      ->check(CLI::PositiveNumber.description(""));
  command
      ->add_option(
          "--finish-by", flags->finish_by,
          "When the job should have ended, waiting included: 2026-01-31T17:05:09Z, or 2h30m "
          "from now")
      ->type_name("TIME");
  command
      ->add_option("--min-keep", flags->min_keep,
                   "Share of the rows that must be computed at least")
      ->type_name("SHARE")
      ->check(CLI::Range(1e-6, 1.0).description(""));
  command
      ->add_option("--max-device-hours", flags->max_device_hours,
                   "Ranks times hours of running at most")
      ->type_name("HOURS")
      ->check(CLI::PositiveNumber.description(""));
  command
      ->add_option("--keep", flags->keep,
                   "Shares of the blocks to choose among, beside that of the job: 0.7,0.3")
      ->type_name("SHARE,..")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(CLI::Range(1e-6, 1 - 1e-6).description(""));
  command->add_option("--ranks", flags->ranks, "Numbers of ranks to choose among: 1,2,4")
      ->type_name("N,..")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(CLI::Range(1, 4096).description(""));
}

absl::Status ApplyWishes(const WishFlags& flags, lemo::v1::JobSpec* spec) {
  if (!flags.offer.empty()) spec->mutable_plan()->set_offer(flags.offer);
  if (!flags.prefer.empty()) spec->mutable_plan()->set_prefer(flags.prefer);
  if (flags.max_memory_bytes > 0) {
    spec->mutable_plan()->set_max_memory_bytes(flags.max_memory_bytes);
  }
  if (flags.min_keep > 0) spec->mutable_plan()->set_min_keep(flags.min_keep);
  if (flags.max_device_hours > 0) {
    spec->mutable_plan()->set_max_device_hours(flags.max_device_hours);
  }
  if (!flags.ranks.empty()) {
    *spec->mutable_plan()->mutable_ranks() = {flags.ranks.begin(), flags.ranks.end()};
  }
  if (!flags.keep.empty()) {
    *spec->mutable_plan()->mutable_keep() = {flags.keep.begin(), flags.keep.end()};
  }
  if (flags.finish_by.empty()) return absl::OkStatus();
  absl::Duration from_now;
  absl::Time time;
  std::string ignored;
  if (absl::ParseDuration(flags.finish_by, &from_now) && from_now > absl::ZeroDuration()) {
    time = absl::Now() + from_now;
  } else if (!absl::ParseTime(absl::RFC3339_full, flags.finish_by, &time, &ignored)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--finish-by: expected a time such as 2026-01-31T17:05:09Z, or 2h30m from "
                     "now; got \"",
                     flags.finish_by, "\""));
  }
  spec->mutable_plan()->set_finish_by(
      absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", time, absl::UTCTimeZone()));
  return absl::OkStatus();
}

absl::StatusOr<lemo::v1::JobSpec> LoadJobSpec(Context& context, const std::string& file,
                                              const std::vector<std::string>& assignments,
                                              const WishFlags& wishes) {
  LEMO_ASSIGN_OR_RETURN(const SpecText source, ReadSpecFile(file));
  Violations violations;
  std::vector<std::string> notes;
  lemo::v1::JobSpec spec = ParseJobSpec(source, assignments, &violations, &notes);
  LEMO_RETURN_IF_ERROR(ApplyWishes(wishes, &spec));
  CheckLocalInputs(spec, &violations);
  if (const absl::Status status = violations.ToStatus(); !status.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the spec has faults\n", std::string(status.message())));
  }
  for (const std::string& note : notes) context.err() << "note: " << Printable(note) << "\n";
  return spec;
}

}  // namespace lemo::cli
