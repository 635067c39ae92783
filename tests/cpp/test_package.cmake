# SPDX-License-Identifier: Apache-2.0
# Installs a built tree, builds the example against what was installed, and runs it. Wants BUILD, SOURCE, WORK,
# GENERATOR and COMPILER; where these are for another machine, TOOLCHAIN and EMULATOR.
function(run)
  execute_process(COMMAND ${ARGV} RESULT_VARIABLE status OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(status)
    list(JOIN ARGV " " command)
    message(FATAL_ERROR "${command}\n${output}")
  endif()
endfunction()

file(REMOVE_RECURSE ${WORK})
run(${CMAKE_COMMAND} --install ${BUILD} --prefix ${WORK}/prefix)
run(${CMAKE_COMMAND} -S ${SOURCE} -B ${WORK}/build -G ${GENERATOR} -DCMAKE_PREFIX_PATH=${WORK}/prefix
    -DCMAKE_CXX_COMPILER=${COMPILER} -DCMAKE_TOOLCHAIN_FILE=${TOOLCHAIN} -DCMAKE_CXX_FLAGS=-Werror)
run(${CMAKE_COMMAND} --build ${WORK}/build)

# A ranker and states of zeros: every score is 0, the probabilities are equal, the first candidate wins.
run(sh -c "head -c 100000 /dev/zero > ${WORK}/ranker && head -c 80 /dev/zero > ${WORK}/states")
execute_process(COMMAND ${EMULATOR} ${WORK}/build/score ${WORK}/ranker 5 16 3 INPUT_FILE ${WORK}/states
                RESULT_VARIABLE status OUTPUT_VARIABLE printed)
if(status OR NOT printed STREQUAL "* 0.000000 0.333333\n  0.000000 0.333333\n  0.000000 0.333333\n")
  message(FATAL_ERROR "score answered ${status}:\n${printed}")
endif()
execute_process(COMMAND ${EMULATOR} ${WORK}/build/score ${WORK}/ranker 5 16 4 INPUT_FILE ${WORK}/states
                RESULT_VARIABLE status ERROR_VARIABLE printed)
if(NOT status EQUAL 1 OR NOT printed MATCHES "stdin must hold 100 bytes")
  message(FATAL_ERROR "score, too few states, answered ${status}:\n${printed}")
endif()
