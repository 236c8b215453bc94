// Usage: runs_here KIND. Ends with 0 if this processor has the instructions of a kind of library, else with 1.
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#if defined(__x86_64__)
// Whether there are tiles of signed bytes, and the system lets a process use them.
bool has_amx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kTile = 1u << 24, kInt8 = 1u << 25;
  const bool is_told = __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kTile) && (d & kInt8);
  return is_told && syscall(SYS_arch_prctl, 0x1023, 18) == 0;
}
#endif

int main(int argc, char** argv) {
  const char* kind = argc == 2 ? argv[1] : "";
  bool has = false;
#if defined(__x86_64__)
  const bool has_wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512vnni");
  if (!std::strcmp(kind, "avx512vnni") || !std::strcmp(kind, "narrowvnni")) has = has_wide;
  if (!std::strcmp(kind, "amx")) has = has_wide && has_amx();
  if (!std::strcmp(kind, "avx2") || !std::strcmp(kind, "tilemodel"))
    has = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  // Not every compiler knows AVX-VNNI's name; the narrow kind is the same code.
#elif defined(__aarch64__)
  has = !std::strcmp(kind, "dotprod") || !std::strcmp(kind, "tilemodel");
#endif
  return has ? 0 : 1;
}
