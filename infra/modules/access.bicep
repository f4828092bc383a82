// What the app may do with VMs: exactly the actions that it calls, and those that Azure checks on its behalf.
// tests/test_infra_roles.py holds both lists against what the app asks of the sandbox's Azure.

param principalId string
param customRoles bool
param virtualNetworkName string
param runnerSubnetName string
param securityGroupName string

var machineActions = [
  'Microsoft.Compute/virtualMachines/read'
  'Microsoft.Compute/virtualMachines/write'
  'Microsoft.Compute/virtualMachines/delete'
  'Microsoft.Network/networkInterfaces/read'
  'Microsoft.Network/networkInterfaces/delete'
  'Microsoft.Network/networkInterfaces/write' // linked: a VM's PUT makes its NIC
  'Microsoft.Network/networkInterfaces/join/action' // linked: and attaches it
  'Microsoft.Compute/disks/write' // linked: a VM's PUT makes its disk
  'Microsoft.Compute/disks/delete' // linked: which goes with the VM
  'Microsoft.Compute/images/read' // linked: a VM from an image of one's own
  'Microsoft.Compute/galleries/images/read' // linked: a VM from a gallery's image
  'Microsoft.Compute/galleries/images/versions/read' // linked: and from one version of it
]
var networkActions = [
  'Microsoft.Network/virtualNetworks/subnets/read'
  'Microsoft.Network/virtualNetworks/subnets/join/action' // linked: the NIC's subnet
  'Microsoft.Network/networkSecurityGroups/join/action' // linked: the NIC's security group
]

// Virtual Machine Contributor lacks only the reading of subnets.
var virtualMachineContributor = '9980e02c-c2be-4d73-94e8-173b1dc7cf3c'
var reader = 'acdd72a7-3385-48ef-bd42-f606fba81ae7'
var builtInRoles = customRoles ? [] : [virtualMachineContributor, reader]

resource machineRole 'Microsoft.Authorization/roleDefinitions@2022-04-01' = if (customRoles) {
  name: guid(resourceGroup().id, 'runnerpool machines')
  properties: {
    roleName: 'runnerpool machines (${uniqueString(resourceGroup().id)})'
    description: 'Creates and deletes the VMs of runnerpool with their NICs and disks.'
    type: 'CustomRole'
    permissions: [
      { actions: machineActions }
    ]
    assignableScopes: [resourceGroup().id]
  }
}

resource networkRole 'Microsoft.Authorization/roleDefinitions@2022-04-01' = if (customRoles) {
  name: guid(resourceGroup().id, 'runnerpool network')
  properties: {
    roleName: 'runnerpool network (${uniqueString(resourceGroup().id)})'
    description: 'Puts the NICs of runnerpool into their subnet and security group.'
    type: 'CustomRole'
    permissions: [
      { actions: networkActions }
    ]
    assignableScopes: [resourceGroup().id]
  }
}

resource network 'Microsoft.Network/virtualNetworks@2024-05-01' existing = {
  name: virtualNetworkName
}

resource subnet 'Microsoft.Network/virtualNetworks/subnets@2024-05-01' existing = {
  parent: network
  name: runnerSubnetName
}

resource securityGroup 'Microsoft.Network/networkSecurityGroups@2024-05-01' existing = {
  name: securityGroupName
}

resource machines 'Microsoft.Authorization/roleAssignments@2022-04-01' = if (customRoles) {
  name: guid(resourceGroup().id, principalId, 'runnerpool machines')
  properties: {
    principalId: principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', machineRole.name)
  }
}

resource onSubnet 'Microsoft.Authorization/roleAssignments@2022-04-01' = if (customRoles) {
  name: guid(subnet.id, principalId, 'runnerpool network')
  scope: subnet
  properties: {
    principalId: principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', networkRole.name)
  }
}

resource onSecurityGroup 'Microsoft.Authorization/roleAssignments@2022-04-01' = if (customRoles) {
  name: guid(securityGroup.id, principalId, 'runnerpool network')
  scope: securityGroup
  properties: {
    principalId: principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', networkRole.name)
  }
}

resource builtIn 'Microsoft.Authorization/roleAssignments@2022-04-01' = [for role in builtInRoles: {
  name: guid(resourceGroup().id, principalId, role)
  properties: {
    principalId: principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', role)
  }
}]
