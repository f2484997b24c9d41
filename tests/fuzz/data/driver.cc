// Runs the fuzz entry without libFuzzer: the seed corpus, then mutations of it from a fixed seed.
//
//   data_fuzz CORPUS_DIR [MUTATIONS]
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

constexpr uint32_t kSeed = 20'240'726;

void RunOne(const std::string& input) {
  LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(input.data()), input.size());
}

std::string Mutate(const std::vector<std::string>& corpus, std::mt19937* random) {
  std::mt19937& draw = *random;
  std::string input = corpus[draw() % corpus.size()];
  for (uint32_t edits = 1 + draw() % 6; edits > 0; --edits) {
    const size_t at = input.empty() ? 0 : draw() % (input.size() + 1);
    const size_t length = std::min<size_t>(draw() % 12, input.size() - at);
    switch (draw() % 5) {
      case 0:
        input.erase(at, length);
        break;
      case 1:
        input.insert(at, 1, static_cast<char>(draw()));
        break;
      case 2:
        if (at < input.size()) input[at] = static_cast<char>(input[at] ^ (1 << draw() % 8));
        break;
      case 3:
        input.insert(at, input.substr(at, length));
        break;
      default: {
        const std::string& other = corpus[draw() % corpus.size()];
        const size_t from = other.empty() ? 0 : draw() % other.size();
        input.insert(at, other.substr(from, draw() % 40));
      }
    }
  }
  return input;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: %s CORPUS_DIR [MUTATIONS]\n", argv[0]);
    return 2;
  }
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::directory_iterator(argv[1])) {
    paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());
  std::vector<std::string> corpus;
  for (const std::filesystem::path& path : paths) {
    std::ifstream in(path, std::ios::binary);
    corpus.emplace_back(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
    RunOne(corpus.back());
  }
  if (corpus.empty()) {
    std::fprintf(stderr, "%s has no seeds\n", argv[1]);
    return 1;
  }
  const long mutations = argc > 2 ? std::atol(argv[2]) : 20'000;
  std::mt19937 random(kSeed);
  for (long i = 0; i < mutations; ++i) RunOne(Mutate(corpus, &random));
  std::printf("%zu seeds, %ld mutations from seed %u\n", corpus.size(), mutations, kSeed);
  return 0;
}
