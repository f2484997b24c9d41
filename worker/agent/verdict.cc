#include "worker/agent/verdict.h"

#include <signal.h>
#include <string.h>
#include <sys/wait.h>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/files.h"

namespace lemo::agent {
namespace {

using lemo::v1::AttemptEnded;
using lemo::v1::Failure;

std::string SignalName(int signal) {
  const char* name = ::sigabbrev_np(signal);
  return name == nullptr ? absl::StrCat("signal ", signal) : absl::StrCat("SIG", name);
}

// The signal that ended the leader, whether it let itself be ended or left with 128 + its number.
int EndingSignal(int status) {
  if (WIFSIGNALED(status)) return WTERMSIG(status);
  if (WIFEXITED(status) && WEXITSTATUS(status) > 128 && WEXITSTATUS(status) < 128 + NSIG) {
    return WEXITSTATUS(status) - 128;
  }
  return 0;
}

Failure FailureOf(const GangEnd& end) {
  Failure failure;
  const std::string who = end.ranks == 1 ? "the rank" : absl::StrCat("rank ", end.rank);
  if (const int signal = EndingSignal(end.status); signal != 0) {
    failure = SystemError(
        absl::StrCat(who, " was ended by ", SignalName(signal), ", which the agent did not send"));
    if (signal == SIGKILL) {
      failure.set_advice(
          "The kernel's out-of-memory killer is a likely cause: look into the host's kernel log, "
          "and give the job less memory or the host more.");
    }
    return failure;
  }
  const bool told = end.error && (end.rank == 0 || end.error_is_cause);
  const int code =
      told && end.error->exit_code() != 0 ? end.error->exit_code() : WEXITSTATUS(end.status);
  switch (code) {
    case 2:
      // To the trainer the output directory is its user's; here it is this machine's.
      failure.set_kind(end.error && SaysDiskIsFull(end.error->message()) ? Failure::SYSTEM_ERROR
                                                                         : Failure::USER_ERROR);
      break;
    case 3:
      failure.set_kind(Failure::OUT_OF_MEMORY);
      break;
    default:
      failure.set_kind(Failure::SYSTEM_ERROR);
  }
  if (told) {
    failure.set_message(end.error->message());
    *failure.mutable_violations() = end.error->violations();
    failure.set_advice(end.error->advice());
  } else {
    failure.set_message(absl::StrCat(who, " left with code ", code, " and gave no reason"));
  }
  return failure;
}

}  // namespace

std::optional<int> RankNamedIn(const std::string& message) {
  const std::string begin = "rank ";
  const size_t colon = message.find(':');
  int rank = 0;
  if (!absl::StartsWith(message, begin) || colon == std::string::npos ||
      !absl::SimpleAtoi(message.substr(begin.size(), colon - begin.size()), &rank) || rank < 0) {
    return std::nullopt;
  }
  return rank;
}

Failure SystemError(const std::string& message) {
  Failure failure;
  failure.set_kind(Failure::SYSTEM_ERROR);
  failure.set_message(message);
  return failure;
}

AttemptEnded Judge(const GangEnd& end) {
  AttemptEnded ended;
  if (WIFEXITED(end.status) && WEXITSTATUS(end.status) == 0) {
    ended.set_outcome(AttemptEnded::SUCCEEDED);
    return ended;
  }
  if (!end.failure && end.asked_to_stop && EndingSignal(end.status) != 0) {
    ended.set_outcome(AttemptEnded::STOPPED);
    return ended;
  }
  ended.set_outcome(AttemptEnded::FAILED);
  *ended.mutable_failure() = end.failure ? *end.failure : FailureOf(end);
  ended.mutable_failure()->set_rank(end.rank);
  ended.mutable_failure()->set_log_tail(end.log_tail);
  return ended;
}

}  // namespace lemo::agent
