// Stands in for libFuzzer where the compiler has none: the seed corpus, then mutations of it from a
// seed. What breaks is written to the error stream in hexadecimal, with its number; the same
// arguments break again.
//
//   PROGRAM CORPUS_DIR [MUTATIONS [SEED]]
#include <signal.h>
#include <unistd.h>

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

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

constexpr uint32_t kSeed = 20'261'121;
constexpr long kMutations = 10'000;
constexpr size_t kLargest = 8192;

// The input at hand, for the handler of the signal that ends the program.
std::vector<uint8_t> at_hand;
long number_at_hand = 0;

void Tell() {
  std::fprintf(stderr, "\ninput %ld, %zu bytes: ", number_at_hand, at_hand.size());
  for (const uint8_t byte : at_hand) std::fprintf(stderr, "%02x", byte);
  std::fprintf(stderr, "\n");
}

void OnSignal(int signal) {
  Tell();
  ::signal(signal, SIG_DFL);
  ::raise(signal);
}

void RunOne(const std::string& input) {
  ++number_at_hand;
  // Exactly as large as the input, so that a sanitiser sees a read past its end.
  at_hand = std::vector<uint8_t>(input.begin(), input.end());
  LLVMFuzzerTestOneInput(at_hand.data(), at_hand.size());
}

std::string Mutate(const std::vector<std::string>& corpus, std::mt19937* random) {
  std::mt19937& draw = *random;
  std::string input = corpus[draw() % corpus.size()];
  for (uint32_t edits = 1 + draw() % 8; edits > 0; --edits) {
    const size_t at = draw() % (input.size() + 1);
    const size_t length = std::min<size_t>(draw() % 24, input.size() - at);
    switch (draw() % 7) {
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
      case 4:
        // What grows with the size of the input shows itself.
        for (uint32_t times = draw() % 64; times > 0 && input.size() < kLargest; --times) {
          input.insert(at, input.substr(at, length));
        }
        break;
      case 5:
        if (at < input.size()) input[at] = static_cast<char>(draw());
        break;
      default: {
        const std::string& other = corpus[draw() % corpus.size()];
        const size_t from = other.empty() ? 0 : draw() % other.size();
        input.insert(at, other.substr(from, draw() % 60));
      }
    }
  }
  input.resize(std::min(input.size(), kLargest));
  return input;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: %s CORPUS_DIR [MUTATIONS [SEED]]\n", argv[0]);
    return 2;
  }
#if defined(__SANITIZE_ADDRESS__)
  // It has handlers of its own, which tell where.
  __sanitizer_set_death_callback(Tell);
  for (const int signal : {SIGABRT, SIGALRM}) ::signal(signal, OnSignal);
#else
  for (const int signal : {SIGABRT, SIGSEGV, SIGFPE, SIGBUS, SIGALRM}) ::signal(signal, OnSignal);
#endif
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::directory_iterator(argv[1])) {
    paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());
  std::vector<std::string> corpus;
  for (const std::filesystem::path& path : paths) {
    std::ifstream in(path, std::ios::binary);
    corpus.emplace_back(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
  }
  if (corpus.empty()) {
    std::fprintf(stderr, "%s has no seeds\n", argv[1]);
    return 1;
  }
  const long mutations = argc > 2 ? std::atol(argv[2]) : kMutations;
  const uint32_t seed = argc > 3 ? static_cast<uint32_t>(std::atol(argv[3])) : kSeed;
  std::mt19937 random(seed);
  for (const std::string& input : corpus) RunOne(input);
  for (long i = 0; i < mutations; ++i) {
    ::alarm(60);  // no input takes that long
    RunOne(Mutate(corpus, &random));
  }
  std::printf("%zu seeds, %ld mutations from seed %u\n", corpus.size(), mutations, seed);
  return 0;
}
