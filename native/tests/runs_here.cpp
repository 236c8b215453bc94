// Usage: runs_here KIND. Ends with 0 if this processor has the instructions of a kind of library, else with 1.
#include <cstring>

int main(int argc, char** argv) {
  const char* kind = argc == 2 ? argv[1] : "";
  bool has = false;
#if defined(__x86_64__)
  const bool has_wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512vnni");
  if (!std::strcmp(kind, "avx512vnni") || !std::strcmp(kind, "narrowvnni")) has = has_wide;
  if (!std::strcmp(kind, "avx2")) has = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  // Not every compiler knows AVX-VNNI's name; the narrow kind is the same code.
#elif defined(__aarch64__)
  has = !std::strcmp(kind, "dotprod");
#endif
  return has ? 0 : 1;
}
