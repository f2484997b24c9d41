#include "worker/train/loop/checkpoint_parts.h"

#include <system_error>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/files.h"
#include "common/status_macros.h"

namespace lemo::train {
namespace {

// The lead puts it into its output directory, and who can read it shares that.
constexpr const char* kProbe = ".lemo.gang";

}  // namespace

absl::StatusOr<CheckpointParts> DivideCheckpoints(Gang& gang, const std::filesystem::path& output) {
  CheckpointParts parts;
  if (gang.alone()) return parts;
  const std::filesystem::path probe = output / kProbe;
  // Of this very start: nobody takes what an earlier one has left for it.
  const std::string text =
      BroadcastText(gang.world(), absl::StrCat(absl::GetCurrentTimeNanos()), 0);
  LEMO_RETURN_IF_ERROR(
      Agree(gang.world(), gang.leads() ? WriteFileAtomic(probe, text) : absl::OkStatus()));
  const absl::StatusOr<std::string> seen = ReadFile(probe);
  const bool writes = gang.leads() || (seen.ok() && *seen == text);
  const std::vector<std::vector<double>> all = gang.Everyones({writes ? 1.0 : 0.0});
  parts = {.own = -1, .count = 0};
  for (int rank = 0; rank < gang.size(); ++rank) {
    if (all[static_cast<size_t>(rank)][0] == 0) continue;
    if (rank == gang.rank()) parts.own = parts.count;
    ++parts.count;
  }
  std::error_code ignored;
  if (gang.leads()) std::filesystem::remove(probe, ignored);
  return parts;
}

}  // namespace lemo::train
