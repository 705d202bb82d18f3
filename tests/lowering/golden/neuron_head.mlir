module @jit__lambda attributes {mhlo.num_partitions = 1 : i32, mhlo.num_replicas = 1 : i32} {
  func.func public @main(%arg0: tensor<1x1x64x8xf32>, %arg1: tensor<32x1x1xf32>, %arg2: tensor<32x1x1xf32>, %arg3: tensor<1x1x8x64xf32>, %arg4: tensor<128x128xf32>, %arg5: tensor<1x128xf32>, %arg6: tensor<1x128xf32>, %arg7: tensor<1x128xf32>, %arg8: tensor<128x128xf32>, %arg9: tensor<128x300xf32>, %arg10: tensor<64x128xf32>, %arg11: tensor<128x192xf32>, %arg12: tensor<128x128xf32>, %arg13: tensor<1x1x128xf32>, %arg14: tensor<8x1x1x1xi1>, %arg15: tensor<1x1xi32>) -> (tensor<1x1x128xf32> {jax.result_info = "result[0]"}, tensor<1x1x64x8xf32> {jax.result_info = "result[1][0]"}, tensor<1x1x8x64xf32> {jax.result_info = "result[2][0]"}, tensor<1x1x3xf32> {jax.result_info = "result[3]"}, tensor<1x1x3xi32> {jax.result_info = "result[4]"}) {
    %0 = stablehlo.slice %arg14 [0:7, 0:1, 0:1, 0:1] : (tensor<8x1x1x1xi1>) -> tensor<7x1x1x1xi1>
    %1 = stablehlo.convert %0 : (tensor<7x1x1x1xi1>) -> tensor<7x1x1x1xui8>
    %2 = stablehlo.reshape %1 : (tensor<7x1x1x1xui8>) -> tensor<7x1xui8>
    %3 = stablehlo.slice %arg14 [7:8, 0:1, 0:1, 0:1] : (tensor<8x1x1x1xi1>) -> tensor<1x1x1x1xi1>
    %4 = stablehlo.iota dim = 0 : tensor<1x1xi32>
    %5 = stablehlo.iota dim = 1 : tensor<1x1xi32>
    %c = stablehlo.constant dense<0> : tensor<i32>
    %6 = stablehlo.broadcast_in_dim %c, dims = [] : (tensor<i32>) -> tensor<1x1xi32>
    %7 = stablehlo.add %4, %6 : tensor<1x1xi32>
    %8 = stablehlo.compare EQ, %7, %5, SIGNED : (tensor<1x1xi32>, tensor<1x1xi32>) -> tensor<1x1xi1>
    %9 = stablehlo.broadcast_in_dim %8, dims = [0, 2] : (tensor<1x1xi1>) -> tensor<1x1x1x1x1xi1>
    %10 = stablehlo.broadcast_in_dim %3, dims = [1, 2, 3, 4] : (tensor<1x1x1x1xi1>) -> tensor<1x1x1x1x1xi1>
    %11 = stablehlo.and %9, %10 : tensor<1x1x1x1x1xi1>
    %12 = stablehlo.convert %11 : (tensor<1x1x1x1x1xi1>) -> tensor<1x1x1x1x1xui8>
    %13 = stablehlo.reshape %12 : (tensor<1x1x1x1x1xui8>) -> tensor<1x1xui8>
    %c_0 = stablehlo.constant dense<0> : tensor<i32>
    %14 = stablehlo.broadcast_in_dim %c_0, dims = [] : (tensor<i32>) -> tensor<1x1xi32>
    %15 = stablehlo.compare GE, %arg15, %14, SIGNED : (tensor<1x1xi32>, tensor<1x1xi32>) -> tensor<1x1xi1>
    %c_1 = stablehlo.constant dense<8> : tensor<i32>
    %16 = stablehlo.broadcast_in_dim %c_1, dims = [] : (tensor<i32>) -> tensor<1x1xi32>
    %17 = stablehlo.compare LT, %arg15, %16, SIGNED : (tensor<1x1xi32>, tensor<1x1xi32>) -> tensor<1x1xi1>
    %18 = stablehlo.and %15, %17 : tensor<1x1xi1>
    %c_2 = stablehlo.constant dense<8> : tensor<i32>
    %19 = call @_where(%18, %arg15, %c_2) : (tensor<1x1xi1>, tensor<1x1xi32>, tensor<i32>) -> tensor<1x1xi32>
    %20 = stablehlo.broadcast_in_dim %19, dims = [0, 1] : (tensor<1x1xi32>) -> tensor<1x1x1xi32>
    %21 = stablehlo.broadcast_in_dim %19, dims = [0, 2] : (tensor<1x1xi32>) -> tensor<1x1x1xi32>
    %22 = stablehlo.compare EQ, %20, %21, SIGNED : (tensor<1x1x1xi32>, tensor<1x1x1xi32>) -> tensor<1x1x1xi1>
    %23 = call @triu(%22) : (tensor<1x1x1xi1>) -> tensor<1x1x1xi1>
    %c_3 = stablehlo.constant dense<false> : tensor<i1>
    %24 = stablehlo.reduce(%23 init: %c_3) applies stablehlo.or across dimensions = [2] : (tensor<1x1x1xi1>, tensor<i1>) -> tensor<1x1xi1>
    %25 = stablehlo.iota dim = 0 : tensor<1xi32>
    %26 = stablehlo.broadcast_in_dim %25, dims = [0] : (tensor<1xi32>) -> tensor<1x1xi32>
    %c_4 = stablehlo.constant dense<8> : tensor<i32>
    %27 = stablehlo.broadcast_in_dim %c_4, dims = [] : (tensor<i32>) -> tensor<1x1xi32>
    %28 = stablehlo.compare LT, %19, %27, SIGNED : (tensor<1x1xi32>, tensor<1x1xi32>) -> tensor<1x1xi1>
    %29 = stablehlo.not %24 : tensor<1x1xi1>
    %30 = stablehlo.and %28, %29 : tensor<1x1xi1>
    %31 = stablehlo.iota dim = 0 : tensor<1xui32>
    %32 = stablehlo.broadcast_in_dim %31, dims = [0] : (tensor<1xui32>) -> tensor<1x1x1xui32>
    %c_5 = stablehlo.constant dense<1> : tensor<ui32>
    %33 = stablehlo.broadcast_in_dim %c_5, dims = [] : (tensor<ui32>) -> tensor<1x1x1xui32>
    %34 = stablehlo.multiply %32, %33 : tensor<1x1x1xui32>
    %35 = stablehlo.convert %26 : (tensor<1x1xi32>) -> tensor<1x1xui32>
    %36 = stablehlo.broadcast_in_dim %35, dims = [1, 2] : (tensor<1x1xui32>) -> tensor<1x1x1xui32>
    %37 = stablehlo.add %34, %36 : tensor<1x1x1xui32>
    %c_6 = stablehlo.constant dense<1> : tensor<ui32>
    %38 = stablehlo.broadcast_in_dim %c_6, dims = [] : (tensor<ui32>) -> tensor<1x1x1xui32>
    %39 = stablehlo.multiply %37, %38 : tensor<1x1x1xui32>
    %40 = stablehlo.convert %19 : (tensor<1x1xi32>) -> tensor<1x1xui32>
    %41 = stablehlo.broadcast_in_dim %40, dims = [1, 2] : (tensor<1x1xui32>) -> tensor<1x1x1xui32>
    %c_7 = stablehlo.constant dense<512> : tensor<ui32>
    %42 = stablehlo.broadcast_in_dim %c_7, dims = [] : (tensor<ui32>) -> tensor<1x1x1xui32>
    %43 = stablehlo.multiply %39, %42 : tensor<1x1x1xui32>
    %44 = stablehlo.add %43, %41 : tensor<1x1x1xui32>
    %c_8 = stablehlo.constant dense<8> : tensor<ui32>
    %45 = stablehlo.broadcast_in_dim %c_8, dims = [] : (tensor<ui32>) -> tensor<1x1x1xui32>
    %46 = stablehlo.multiply %39, %45 : tensor<1x1x1xui32>
    %47 = stablehlo.add %46, %41 : tensor<1x1x1xui32>
    %c_9 = stablehlo.constant dense<false> : tensor<i1>
    %48 = stablehlo.broadcast_in_dim %c_9, dims = [] : (tensor<i1>) -> tensor<1x1xi1>
    %c_10 = stablehlo.constant dense<true> : tensor<i1>
    %49 = stablehlo.reduce(%30 init: %c_10) applies stablehlo.and across dimensions = [1] : (tensor<1x1xi1>, tensor<i1>) -> tensor<1xi1>
    %50 = stablehlo.broadcast_in_dim %49, dims = [0] : (tensor<1xi1>) -> tensor<1x1xi1>
    %51 = stablehlo.broadcast_in_dim %50, dims = [1, 2] : (tensor<1x1xi1>) -> tensor<1x1x1xi1>
    %c_11 = stablehlo.constant dense<4294967295> : tensor<ui32>
    %52 = call @_where_0(%51, %44, %c_11) : (tensor<1x1x1xi1>, tensor<1x1x1xui32>, tensor<ui32>) -> tensor<1x1x1xui32>
    %53 = stablehlo.reshape %52 : (tensor<1x1x1xui32>) -> tensor<1x1xui32>
    %54 = stablehlo.broadcast_in_dim %30, dims = [1, 2] : (tensor<1x1xi1>) -> tensor<1x1x1xi1>
    %c_12 = stablehlo.constant dense<4294967295> : tensor<ui32>
    %55 = call @_where_0(%54, %47, %c_12) : (tensor<1x1x1xi1>, tensor<1x1x1xui32>, tensor<ui32>) -> tensor<1x1x1xui32>
    %56 = stablehlo.reshape %55 : (tensor<1x1x1xui32>) -> tensor<1x1xui32>
    %57:5 = stablehlo.custom_call @AwsNeuronCustomNativeKernel(%arg13, %arg11, %arg10, %arg8, %arg12, %arg4, %arg7, %arg6, %arg0, %arg3, %arg1, %arg2, %2, %13, %53, %56, %arg5, %arg9) {api_version = 2 : i32, backend_config = "eyJmdW5jX25hbWUiOiAidHJhbnNmb3JtZXJfdGtnX2VudHJ5IiwgInBsYXRmb3JtX3RhcmdldCI6IDMsICJrZXJuZWxfZm9ybWF0IjogImJpciIsICJrZXJuZWxfdmVyc2lvbiI6IDEsICJrbGlyX2JpbmFyeSI6IHsiYmluYXJ5IjogIiIsICJpbnB1dF9uYW1lcyI6IFsiWCIsICJXX3FrdnNfMCIsICJXX291dHNfMCIsICJXX2dhdGVzXzAiLCAiV191cHNfMCIsICJXX2Rvd25zXzAiLCAiV19nYW1tYV9xa3ZzXzAiLCAiV19nYW1tYV9tbHBzXzAiLCAiS19jYWNoZXNfMC5tdXN0X2FsaWFzX2lucHV0IiwgIlZfY2FjaGVzXzAubXVzdF9hbGlhc19pbnB1dCIsICJSb1BFX2NvcyIsICJSb1BFX3NpbiIsICJwcmlvcl9tYXNrIiwgImFjdGl2ZV9tYXNrIiwgIndpbmRvd19vZmZzZXRzIiwgInZhbHVlX29mZnNldHMiLCAiV19nYW1tYV9maW5hbCIsICJXX2hlYWQiXSwgIm91dHB1dF9uYW1lcyI6IFsiaGlkZGVuIiwgIktfY2FjaGVzXzAiLCAiVl9jYWNoZXNfMCIsICJjYW5kaWRhdGVfbG9naXRzIiwgImNhbmRpZGF0ZV9pZHMiXSwgInZlcnNpb25faWRlbnRpZmllciI6ICIiLCAiYWxpYXNlcyI6IFtbOCwgMV0sIFs5LCAyXV19LCAiZ3JpZCI6IDIsICJoYXNfY29sbGVjdGl2ZXMiOiBmYWxzZSwgIm1hY19jb3VudCI6IDEyMTM0NCwgInJlcGxpY2FfZ3JvdXBzIjogbnVsbCwgIm51bV9sYXllcnMiOiAxfQ==", operand_layouts = [dense<[2, 1, 0]> : tensor<3xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[3, 2, 1, 0]> : tensor<4xindex>, dense<[3, 2, 1, 0]> : tensor<4xindex>, dense<[2, 1, 0]> : tensor<3xindex>, dense<[2, 1, 0]> : tensor<3xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>, dense<[1, 0]> : tensor<2xindex>], output_operand_aliases = [#stablehlo.output_operand_alias<output_tuple_indices = [1], operand_index = 8, operand_tuple_indices = []>, #stablehlo.output_operand_alias<output_tuple_indices = [2], operand_index = 9, operand_tuple_indices = []>], result_layouts = [dense<[2, 1, 0]> : tensor<3xindex>, dense<[3, 2, 1, 0]> : tensor<4xindex>, dense<[3, 2, 1, 0]> : tensor<4xindex>, dense<[2, 1, 0]> : tensor<3xindex>, dense<[2, 1, 0]> : tensor<3xindex>]} : (tensor<1x1x128xf32>, tensor<128x192xf32>, tensor<64x128xf32>, tensor<128x128xf32>, tensor<128x128xf32>, tensor<128x128xf32>, tensor<1x128xf32>, tensor<1x128xf32>, tensor<1x1x64x8xf32>, tensor<1x1x8x64xf32>, tensor<32x1x1xf32>, tensor<32x1x1xf32>, tensor<7x1xui8>, tensor<1x1xui8>, tensor<1x1xui32>, tensor<1x1xui32>, tensor<1x128xf32>, tensor<128x300xf32>) -> (tensor<1x1x128xf32>, tensor<1x1x64x8xf32>, tensor<1x1x8x64xf32>, tensor<1x1x3xf32>, tensor<1x1x3xi32>)
    return %57#0, %57#1, %57#2, %57#3, %57#4 : tensor<1x1x128xf32>, tensor<1x1x64x8xf32>, tensor<1x1x8x64xf32>, tensor<1x1x3xf32>, tensor<1x1x3xi32>
  }
  func.func private @_where(%arg0: tensor<1x1xi1>, %arg1: tensor<1x1xi32>, %arg2: tensor<i32>) -> tensor<1x1xi32> {
    %0 = stablehlo.broadcast_in_dim %arg2, dims = [] : (tensor<i32>) -> tensor<1x1xi32>
    %1 = stablehlo.select %arg0, %arg1, %0 : tensor<1x1xi1>, tensor<1x1xi32>
    return %1 : tensor<1x1xi32>
  }
  func.func private @triu(%arg0: tensor<1x1x1xi1>) -> tensor<1x1x1xi1> {
    %0 = stablehlo.iota dim = 0 : tensor<1x1xi32>
    %c = stablehlo.constant dense<0> : tensor<i32>
    %1 = stablehlo.broadcast_in_dim %c, dims = [] : (tensor<i32>) -> tensor<1x1xi32>
    %2 = stablehlo.add %0, %1 : tensor<1x1xi32>
    %3 = stablehlo.iota dim = 1 : tensor<1x1xi32>
    %4 = stablehlo.compare GE, %2, %3, SIGNED : (tensor<1x1xi32>, tensor<1x1xi32>) -> tensor<1x1xi1>
    %5 = stablehlo.broadcast_in_dim %4, dims = [1, 2] : (tensor<1x1xi1>) -> tensor<1x1x1xi1>
    %c_0 = stablehlo.constant dense<false> : tensor<i1>
    %6 = stablehlo.broadcast_in_dim %c_0, dims = [] : (tensor<i1>) -> tensor<1x1x1xi1>
    %7 = stablehlo.select %5, %6, %arg0 : tensor<1x1x1xi1>, tensor<1x1x1xi1>
    return %7 : tensor<1x1x1xi1>
  }
  func.func private @_where_0(%arg0: tensor<1x1x1xi1>, %arg1: tensor<1x1x1xui32>, %arg2: tensor<ui32>) -> tensor<1x1x1xui32> {
    %0 = stablehlo.broadcast_in_dim %arg2, dims = [] : (tensor<ui32>) -> tensor<1x1x1xui32>
    %1 = stablehlo.select %arg0, %arg1, %0 : tensor<1x1x1xi1>, tensor<1x1x1xui32>
    return %1 : tensor<1x1x1xui32>
  }
}

// backend_config:
// {
//   "func_name": "transformer_tkg_entry",
//   "grid": 2,
//   "has_collectives": false,
//   "kernel_format": "bir",
//   "kernel_version": 1,
//   "klir_binary": {
//     "aliases": [
//       [
//         8,
//         1
//       ],
//       [
//         9,
//         2
//       ]
//     ],
//     "binary": "",
//     "input_names": [
//       "X",
//       "W_qkvs_0",
//       "W_outs_0",
//       "W_gates_0",
//       "W_ups_0",
//       "W_downs_0",
//       "W_gamma_qkvs_0",
//       "W_gamma_mlps_0",
//       "K_caches_0.must_alias_input",
//       "V_caches_0.must_alias_input",
//       "RoPE_cos",
//       "RoPE_sin",
//       "prior_mask",
//       "active_mask",
//       "window_offsets",
//       "value_offsets",
//       "W_gamma_final",
//       "W_head"
//     ],
//     "output_names": [
//       "hidden",
//       "K_caches_0",
//       "V_caches_0",
//       "candidate_logits",
//       "candidate_ids"
//     ],
//     "version_identifier": ""
//   },
//   "mac_count": 121344,
//   "num_layers": 1,
//   "platform_target": 3,
//   "replica_groups": null
// }
