// lemo: the command line of the service.
#include <iostream>
#include <string>
#include <vector>

#include "cli/app.h"

int main(int argc, char** argv) {
  return lemo::cli::Run(std::vector<std::string>(argv + 1, argv + argc), std::cout, std::cerr);
}
