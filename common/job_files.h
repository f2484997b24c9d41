// Files that a job takes from the result of another.
//
// They are input files like uploaded ones, by checksum; what differs is their name,
// `jobs/{id}/{path}`, which says whose artifact it is.
#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace lemo {

struct JobFile {
  std::string job;   // `jobs/{id}`
  std::string path;  // of its artifact
};

std::string NameOf(const JobFile& file);
// nullopt for names of another kind.
std::optional<JobFile> JobFileNamed(const std::string& name);

// Whether a field that takes a path names a job instead.
bool IsJobName(std::string_view text);

// Of a result, what the predictor's files begin with.
inline constexpr std::string_view kPredictorPrefix = "predictor/";

// Makes `directory` one that looks like the predictor's in the result of `job`: links to those of
// `files` (name -> path) that are of it. What was there before is removed. NotFound when none are;
// InvalidArgument for a file that would lie deeper.
absl::Status LinkPredictor(const std::string& job, const std::map<std::string, std::string>& files,
                           const std::filesystem::path& directory);

}  // namespace lemo
