# SPDX-License-Identifier: Apache-2.0
# cmake -DNVCC=.. -DSOURCE=.. -DOBJECT=.. -P compile_cuda.cmake
# Compiles one .cu file for sm_80, sm_90 and, as PTX, what comes after. Fails on a warning or a spilled register.
get_filename_component(folder ${OBJECT} DIRECTORY)
get_filename_component(name ${SOURCE} NAME)
file(MAKE_DIRECTORY ${folder})
execute_process(
  COMMAND
    ${NVCC} -std=c++17 -O3 --expt-relaxed-constexpr -Xptxas -v,-warn-spills -Xcompiler -fPIC,-Wall,-Wextra
    -gencode arch=compute_80,code=sm_80 -gencode "arch=compute_90,code=[sm_90,compute_90]"
    -MD -MF ${OBJECT}.d -MT ${OBJECT} -c ${SOURCE} -o ${OBJECT}
  RESULT_VARIABLE result
  OUTPUT_VARIABLE said
  ERROR_VARIABLE said)
if(NOT result EQUAL 0)
  message(FATAL_ERROR "${name} does not compile:\n${said}")
endif()
if(said MATCHES "warning|[1-9][0-9]* bytes spill")
  file(REMOVE ${OBJECT})
  message(FATAL_ERROR "${name} has warnings or spills registers:\n${said}")
endif()
string(REGEX MATCHALL "Used [0-9]+ registers" used "${said}")
list(LENGTH used kernels)
list(TRANSFORM used REPLACE "[^0-9]" "")
list(SORT used COMPARE NATURAL ORDER DESCENDING)
list(GET used 0 registers)
message(STATUS "${name}: ${kernels} kernels over all architectures, no spills, at most ${registers} registers")
