// lemo completion: shell scripts made from the commands themselves.
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "cli/app.h"
#include "cli/commands.h"
#include "cli/errors.h"

namespace lemo::cli {
namespace {

struct CompletionFlags {
  std::string shell;
};

std::vector<std::string> FlagsOf(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  }
  return names;
}

// One line of a case statement for every command: the words that may follow it.
void AppendCases(const CLI::App& app, const std::string& path,
                 const std::vector<std::string>& global, std::string* out) {
  std::vector<std::string> words;
  for (const CLI::App* command : app.get_subcommands({})) words.push_back(command->get_name());
  const std::vector<std::string> flags = FlagsOf(app);
  words.insert(words.end(), flags.begin(), flags.end());
  if (!path.empty()) words.insert(words.end(), global.begin(), global.end());
  absl::StrAppend(out, "    \"", path, "\") words=\"", absl::StrJoin(words, " "), "\" ;;\n");
  for (const CLI::App* command : app.get_subcommands({})) {
    AppendCases(*command, path + "/" + command->get_name(), global, out);
  }
}

std::string BashScript(const CLI::App& app) {
  std::vector<std::string> global;
  for (const std::string& flag : FlagsOf(app)) {
    if (flag != "--help") global.push_back(flag);
  }
  std::string cases;
  AppendCases(app, "", global, &cases);
  return absl::StrCat(
      R"(# Completion of lemo for bash: source <(lemo completion bash)
_lemo() {
  local current="${COMP_WORDS[COMP_CWORD]}" path="" words="" word
  for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
    case "$word" in -*) continue ;; esac
    case "$path/$word" in
)",
      [&] {
        // Only words that are commands lengthen the path.
        std::vector<std::string> paths;
        for (const CLI::App* group : app.get_subcommands({})) {
          paths.push_back("/" + group->get_name());
          for (const CLI::App* command : group->get_subcommands({})) {
            paths.push_back(absl::StrCat("/", group->get_name(), "/", command->get_name()));
          }
        }
        return absl::StrCat("      ", absl::StrJoin(paths, "|"));
      }(),
      R"() path="$path/$word" ;;
    esac
  done
  case "$path" in
)",
      cases, R"(  esac
  COMPREPLY=($(compgen -W "$words" -- "$current"))
  case "$current" in -*) ;; *) COMPREPLY+=($(compgen -f -- "$current")) ;; esac
}
complete -F _lemo lemo
)");
}

absl::StatusOr<int> Completion(Context& context, const CompletionFlags& flags) {
  Context unused(context.out(), context.err());
  const std::unique_ptr<CLI::App> app = MakeApp(unused);
  if (flags.shell == "zsh") {
    context.out() << "# Completion of lemo for zsh: source <(lemo completion zsh)\n"
                     "autoload -U +X compinit && compinit\n"
                     "autoload -U +X bashcompinit && bashcompinit\n";
  }
  context.out() << BashScript(*app);
  return kExitOk;
}

}  // namespace

void AddCompletionCommand(CLI::App& app, Context& context) {
  auto flags = std::make_shared<CompletionFlags>();
  CLI::App* completion =
      AddCommand(app, context, "completion", "Print a script that completes commands and options",
                 flags, &Completion);
  completion->add_option("SHELL", flags->shell, "bash or zsh")
      ->required()
      ->check(CLI::IsMember({"bash", "zsh"}))
      ->type_name("bash|zsh");
}

}  // namespace lemo::cli
